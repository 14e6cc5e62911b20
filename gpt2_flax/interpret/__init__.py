"""Looking inside a model, and reaching in: pure functions of (model, params, tokens).

sites.py      the steps of the model by name, and their axes: TAPS
trace.py      all of their values, in one call
edits.py      ablate, scale, patch, replace, steer; with everything that takes a model
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
)
from gpt2_flax.interpret.sites import TAPS
from gpt2_flax.interpret.trace import Trace, trace

__all__ = [
  "TAPS",
  "Edit",
  "EditedModel",
  "Trace",
  "ablate_heads",
  "edited",
  "make_edit",
  "patch",
  "replace_pattern",
  "scale_heads",
  "select",
  "steer",
  "trace",
]
