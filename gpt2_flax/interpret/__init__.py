"""Looking inside a model, and reaching in: pure functions of (model, params, tokens).

sites.py      the steps of the model by name, and their axes: TAPS
trace.py      all of their values, in one call
edits.py      ablate, scale, patch, replace, steer; with everything that takes a model
heads.py      where each head looks, and what the loss costs without it
logits.py     where the logits come from: layer by layer, and part by part
page/         all of this on one page, for one text
control_flow  the picture of the computation, drawn from the computation itself
"""

from gpt2_flax.interpret.edits import (
  ablate_heads,
  Edit,
  edited,
  EditedModel,
  make_edit,
  patch,
  replace_pattern,
  scale_heads,
  select,
  steer,
  transform,
)
from gpt2_flax.interpret.heads import (
  attention_entropy,
  first_token_score,
  head_ablation,
  head_gradient,
  head_similarity,
  induction_score,
  previous_token_score,
)
from gpt2_flax.interpret.logits import logit_attribution, logit_lens, LogitParts
from gpt2_flax.interpret.sites import TAPS
from gpt2_flax.interpret.trace import Trace, trace

__all__ = [
  "TAPS",
  "Edit",
  "EditedModel",
  "LogitParts",
  "Trace",
  "ablate_heads",
  "attention_entropy",
  "edited",
  "first_token_score",
  "head_ablation",
  "head_gradient",
  "head_similarity",
  "induction_score",
  "logit_attribution",
  "logit_lens",
  "make_edit",
  "patch",
  "previous_token_score",
  "replace_pattern",
  "scale_heads",
  "select",
  "steer",
  "trace",
  "transform",
]
