"""Everything the model computes on the way to its logits, as one tree of arrays."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax

from gpt2_flax.interpret import sites
from gpt2_flax.interpret.edits import Edit, edited
from gpt2_flax.interpret.sites import TAPS


class Trace(NamedTuple):
  """One field a tap, with the axes that TAPS says; None if not kept.

  Layers and heads are stacked: `trace.weights[layer, head]` is [B, T, S].
  """

  token_embeddings: Any = None
  positions: Any = None
  residual_before: Any = None
  residual_between: Any = None
  residual_after: Any = None
  query: Any = None
  key: Any = None
  value: Any = None
  scores: Any = None
  weights: Any = None
  head_output: Any = None
  attention_output: Any = None
  mlp_hidden: Any = None
  mlp_output: Any = None
  final_norm: Any = None


def trace(
  model: Any,
  params: Any,
  tokens_BT: jax.typing.ArrayLike,
  edits: Sequence[Edit] = (),
  taps: Collection[str] = TAPS,
  **kwargs: Any,
) -> tuple[Any, Trace]:
  """The model's logits and what it computed on the way, edits included.

  A pure function: it may be jitted, vmapped over tokens or edits, differentiated.

  Args:
    model: a GPT2, or what `edited` returns; then `edits` come after those.
    params: of the model.
    tokens_BT: int [B, T].
    edits: changes to make on the way; the trace has the values after them.
    taps: what to keep, names of TAPS. All of them means all that the model has.
    **kwargs: the model call's others: positions, mask, cache, start.

  Returns:
    What the model returns (float32 [B, T, V], or that and the extended cache), and the
    trace. With a cache T counts the new tokens, in weights and scores S counts slots;
    key and value are the new tokens'.

  Raises:
    InputError: a tap or an edit that the model does not have; lists those it has.
  """
  for tap in taps:
    sites.check_site(tap)
  model, params = edited(model, params, edits)
  out, kept = sites.run(model.model, params, params["edits"], taps, tokens_BT, **kwargs)
  return out, Trace(**kept)
