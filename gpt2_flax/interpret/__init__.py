"""Looking inside a model, and reaching in: pure functions of (model, params, tokens).

sites.py      the steps of the model by name, and their axes: TAPS
trace.py      all of their values, in one call
edits.py      ablate, scale, patch, replace, steer; with everything that takes a model
heads.py      where each head looks, and what the loss costs without it
patching.py   what another run's values change here: by place, by head, by path
residual.py   the residual stream as a sum, by part and as it grows
logits.py     where the logits come from: layer by layer, and part by part
composition.py  how far a head reads what another writes, from the weights
page/         all of this on one page, for one text
notebook.py   that page, and pictures of heads, as values of a notebook's cells
control_flow  the picture of the computation, drawn from the computation itself
"""

from gpt2_flax.interpret.composition import (
  composition_scores,
  head_weights,
  HeadWeights,
)
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
from gpt2_flax.interpret.notebook import Page, Picture, plot_attention, show
from gpt2_flax.interpret.patching import (
  activation_patching,
  attribution_patching,
  path_patching,
)
from gpt2_flax.interpret.residual import (
  accumulated_residual,
  residual_parts,
  ResidualParts,
)
from gpt2_flax.interpret.sites import TAPS
from gpt2_flax.interpret.trace import Trace, trace

__all__ = [
  "TAPS",
  "Edit",
  "EditedModel",
  "HeadWeights",
  "LogitParts",
  "Page",
  "Picture",
  "ResidualParts",
  "Trace",
  "ablate_heads",
  "accumulated_residual",
  "activation_patching",
  "attention_entropy",
  "attribution_patching",
  "composition_scores",
  "edited",
  "first_token_score",
  "head_ablation",
  "head_gradient",
  "head_similarity",
  "head_weights",
  "induction_score",
  "logit_attribution",
  "logit_lens",
  "make_edit",
  "patch",
  "path_patching",
  "plot_attention",
  "previous_token_score",
  "replace_pattern",
  "residual_parts",
  "scale_heads",
  "select",
  "show",
  "steer",
  "trace",
  "transform",
]
