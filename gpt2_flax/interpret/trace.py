"""Everything the model computes on the way to its logits, as one tree of arrays."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax

from gpt2_flax.errors import InputError
from gpt2_flax.interpret import sites
from gpt2_flax.interpret.edits import Edit, edited, EditedModel
from gpt2_flax.interpret.sites import TAPS
from gpt2_flax.transformer import GPT2


@jax.tree_util.register_pytree_with_keys_class
class Trace:
  """The values of taps: `trace.weights`, or `trace["weights"]`.

  Each has the axes that TAPS says; a tap that was not kept is None. Layers and heads
  are stacked: `trace.weights[layer, head]` is [B, T, S].
  """

  def __init__(self, **values: Any):
    self._values = {tap: values[tap] for tap in TAPS if tap in values}

  def __getattr__(self, tap: str) -> Any:
    if tap not in TAPS:
      raise AttributeError(f"a trace has no {tap!r}: it has {', '.join(TAPS)}")
    return self._values.get(tap)

  def __getitem__(self, tap: str) -> Any:
    sites.check_site(tap)
    return self._values.get(tap)

  def __iter__(self) -> Iterator[str]:
    """The names of what was kept, in the order of the control flow."""
    return iter(self._values)

  def __len__(self) -> int:
    return len(self._values)

  def __repr__(self) -> str:
    lines = [
      f"  {tap:17}{TAPS[tap]:6}{getattr(value, 'dtype', '')} {jax.numpy.shape(value)}"
      for tap, value in self._values.items()
    ]
    return "\n".join(["Trace", *lines])

  def tree_flatten_with_keys(self) -> tuple[list, tuple[str, ...]]:
    """For jax: each value by its name."""
    pairs = [(jax.tree_util.DictKey(tap), x) for tap, x in self._values.items()]
    return pairs, tuple(self._values)

  @classmethod
  def tree_unflatten(cls, taps: tuple[str, ...], values: Sequence[Any]) -> "Trace":
    """The inverse."""
    return cls(**dict(zip(taps, values, strict=True)))


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
    model: a GPT2, or what `edited` returns; then `edits` come after those. Or a part,
      such as a lone `SelfAttention`, or a module of yours that holds parts.
    params: of the model.
    tokens_BT: int [B, T]; what a part or your module takes, [B, T, D] for a part.
    edits: changes to make on the way; the trace has the values after them.
    taps: what to keep, names of TAPS. All of them means all that the model has.
    **kwargs: the model call's others: positions, mask, rngs; or method="extend" with
      cache and start.

  Returns:
    What the model returns (float32 [B, T, V]; with method="extend" the hidden states
    and the extended cache), and the trace. With a cache T counts the new tokens, in
    weights and scores S counts slots; key and value are the new tokens'. Taps of a part
    have no layers axis, those of a head no heads axis; in a module of yours layers are
    counted as they are called.

  Raises:
    InputError: a tap or an edit that the model does not have; lists those it has. Or
      edits of what is no GPT2.
  """
  for tap in taps:
    sites.check_site(tap)
  if not isinstance(model, (GPT2, EditedModel)):
    if edits:
      raise InputError(f"edits need a GPT2: {type(model).__name__} can be traced only")
    out, kept = sites.run_parts(model, params, taps, tokens_BT, **kwargs)
    return out, Trace(**kept)
  model, params = edited(model, params, edits)
  out, kept = sites.run(model.model, params, params["edits"], taps, tokens_BT, **kwargs)
  return out, Trace(**kept)
