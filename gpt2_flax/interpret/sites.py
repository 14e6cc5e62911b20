"""The steps of GPT-2 by name: where to look, and where to reach in.

The model has no hooks. Its steps are methods, and `nn.intercept_methods` stands
between them: inside the call, so that nothing is left behind in jit's caches or
anywhere else. Arrays travel in and out as variable collections, which is how they
come to each head under `nn.vmap`.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
import dataclasses
import re
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp

from gpt2_flax.errors import InputError, unknown_name
from gpt2_flax.transformer import GPT2, GPT2Config

# Name -> axes, in the order of the control flow. B batch (1 for `positions` that all
# rows share), T query position, S key position, L layers, H heads, K head_dim,
# D embed_dim, F mlp_dim.
TAPS = {
  "token_embeddings": "BTD",  # what positions are added to
  "positions": "BTD",  # the vectors added to them
  "residual_before": "LBTD",  # the residual stream as each block gets it,
  "residual_between": "LBTD",  # between its attention and its feed-forward,
  "residual_after": "LBTD",  # and as the block leaves it
  "query": "LHBTK",  # as projected
  "key": "LHBTK",
  "value": "LHBTK",
  "scores": "LHBTS",  # scaled; nothing added or masked yet
  "weights": "LHBTS",
  "head_output": "LHBTK",  # the values, averaged by the weights
  "attention_output": "LBTD",  # all heads, through the output projection
  "mlp_hidden": "LBTF",  # after the activation
  "mlp_output": "LBTD",
  "final_norm": "BTD",
}

# A step is a module, named without its number, and a method of it.
_ARGUMENTS = {
  ("positional_encoding", "__call__"): "token_embeddings",
  ("blocks", "__call__"): "residual_before",
  ("feed_forward_norm", "__call__"): "residual_between",
}
_RESULTS = {
  ("positional_encoding", "encode"): ("positions",),
  ("heads", "project"): ("query", "key", "value"),
  ("heads", "scores"): ("scores",),
  ("heads", "weights"): ("weights",),
  ("heads", "mix"): ("head_output",),
  ("attention", "__call__"): ("attention_output",),
  ("feed_forward", "hidden"): ("mlp_hidden",),
  ("feed_forward", "__call__"): ("mlp_output",),
  ("blocks", "__call__"): ("residual_after",),
  ("final_norm", "__call__"): ("final_norm",),
}
# The module that applies a site's edits, from the block on where there is one. What
# attention adds decides the residual stream after it.
_MODULES = {
  "token_embeddings": ("positional_encoding",),
  "positions": ("positional_encoding",),
  "residual_between": ("attention",),
  "attention_output": ("attention",),
  "mlp_hidden": ("feed_forward",),
  "mlp_output": ("feed_forward",),
  "final_norm": ("final_norm",),
} | dict.fromkeys(
  ("query", "key", "value", "scores", "weights", "head_output"), ("attention", "heads")
)


def _variable(site: str) -> str:
  """A name that no submodule has: `query` is one in a head."""
  return f"at_{site}"


def check_site(name: str) -> None:
  """Raises an InputError unless TAPS has the name."""
  if name not in TAPS:
    raise unknown_name("tap", name, TAPS)


def run(
  model: GPT2,
  params: Any,
  edits: Sequence[Any],
  taps: Collection[str],
  *args: Any,
  method: Any = None,
  **kwargs: Any,
) -> tuple[Any, dict[str, jax.Array]]:
  """`model.apply` with edits made and taps kept on the way.

  Args:
    edits: `Edit`s; those of one site are made in this order.
    taps: names of TAPS.

  Returns:
    What the model returns, and the values of the taps that it came by.

  Raises:
    InputError: an edit does not fit the model or this call, or a whole pass of the
      model never came by its site; or by that of a tap, unless all are asked for.
  """
  reached = set()
  # Flash attention has no scores and weights to show; the explicit one is its equal.
  explicit = dataclasses.replace(model.config, attention="explicit")
  model = model.clone(config=explicit)

  def edit(module: nn.Module, site: str, value: jax.Array) -> jax.Array:
    reached.add(site)
    axes = TAPS[site].lstrip("LH")
    for mask, scale, new in module.get_variable("edits", _variable(site), ()):
      _check_fits(site, axes, value.shape, (mask, scale, new))
      edited = jnp.where(mask, scale * value + new, value)
      value = edited.astype(value.dtype)
    return value

  def keep(module: nn.Module, site: str, value: jax.Array) -> None:
    reached.add(site)
    if site in taps:
      module.sow("trace", _variable(site), value, lambda _, last: last, lambda: None)

  variables = {"params": params["params"], "edits": _place(edits, model.config)}
  with nn.intercept_methods(_interceptor(edit, keep)):
    out_and_state: Any = model.apply(
      variables, *args, method=method, mutable=["trace"], **kwargs
    )
  out, state = out_and_state
  if method in (None, "__call__", "hidden"):  # other methods are parts of a pass
    _check_reached("edit", (edit.site for edit in edits), reached)
  if set(taps) != set(TAPS):  # all of them means all that the model has
    _check_reached("tap", taps, reached)
  return out, _stack(state.get("trace", {}))


def _check_reached(what: str, wanted: Iterable[str], reached: Collection[str]) -> None:
  """Raises an InputError for a wanted site that the model never came by."""
  for site in wanted:
    if site not in reached:
      has = ", ".join(name for name in TAPS if name in reached)
      raise InputError(f"{what} {site!r} hit nothing: this model has {has}")


def _interceptor(edit: Callable, keep: Callable) -> Callable:
  """Shows each step's value to `edit`, and what came of it to `keep`."""
  before = {}  # the residual stream that each block got, by the block's path

  def intercept(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    module = context.module
    step = re.sub(r"_\d+$", "", module.name or ""), context.method_name
    if site := _ARGUMENTS.get(step):
      value = args[0]
      if site == "residual_before":
        before[module.path] = value = edit(module, site, value)
      elif site != "residual_between":
        value = edit(module, site, value)
      keep(module, site, value)
      args = (value, *args[1:])
    out = call(*args, **kwargs)
    sites = _RESULTS.get(step, ())
    if not sites:
      return out
    values = list(out) if isinstance(out, tuple) else [out]  # a cache may follow
    for i, site in enumerate(sites):
      values[i] = edit(module, site, values[i])
      keep(module, site, values[i])
    if "attention_output" in sites:
      values[0] = _edit_between(module, edit, before[module.path[:-1]], values[0])
    return tuple(values) if isinstance(out, tuple) else values[0]

  return intercept


def _edit_between(
  module: nn.Module, edit: Callable, before_BTD: jax.Array, added_BTD: jax.Array
) -> jax.Array:
  """What attention must add for the residual stream to be what its edits say.

  Up to one rounding; where nothing is edited, x + ((x + a) - x) rounds to x + a.
  """
  if not module.has_variable("edits", _variable("residual_between")):
    return added_BTD
  return edit(module, "residual_between", before_BTD + added_BTD) - before_BTD


def _check_fits(
  site: str, axes: str, shape: tuple[int, ...], arrays: Iterable[jax.Array]
) -> None:
  for array in arrays:
    for axis, given, size in zip(axes, array.shape, shape, strict=True):
      if given not in (1, size):
        raise InputError(
          f"edit of {site!r}: axis {axis} is {given}: must be 1 or {size} in this call"
          " (with a cache, T counts its new tokens and S its slots)"
        )


def _place(edits: Sequence[Any], config: GPT2Config) -> dict:
  """The edits' arrays as a variable collection: each with the module that needs it."""
  placed: dict[tuple[str, ...], list] = {}
  for edit in edits:
    check_site(edit.site)
    axes, arrays = TAPS[edit.site], (edit.mask, edit.scale, edit.value)
    for array in arrays:
      if jnp.ndim(array) != len(axes):
        raise InputError(
          f"edit of {edit.site!r}: an array has shape {jnp.shape(array)}: must have"
          f" {len(axes)} axes, {axes}"
        )
      for axis, size in zip("LH", (config.num_layers, config.num_heads), strict=True):
        given = array.shape[axes.index(axis)] if axis in axes else 1
        if given not in (1, size):
          raise InputError(
            f"edit of {edit.site!r}: axis {axis} is {given}: must be 1 or {size}"
          )
    path = (*_MODULES.get(edit.site, ()), _variable(edit.site))
    if "L" not in axes:
      placed.setdefault(path, []).append(arrays)
      continue
    for layer in range(config.num_layers):
      of_layer = [array[layer if len(array) > 1 else 0] for array in arrays]
      if "H" in axes:  # nn.vmap gives each head its slice
        of_layer = [
          jnp.broadcast_to(array, (config.num_heads, *array.shape[1:]))
          for array in of_layer
        ]
      placed.setdefault((f"blocks_{layer}", *path), []).append(of_layer)
  return traverse_util.unflatten_dict(placed)


def _stack(collection: dict) -> dict[str, jax.Array]:
  """Values by tap, those of all layers stacked."""
  found: dict[str, dict[int, Any]] = {}
  for path, value in traverse_util.flatten_dict(collection).items():
    tap, layer = path[-1].removeprefix("at_"), re.fullmatch(r"blocks_(\d+)", path[0])
    found.setdefault(tap, {})[int(layer[1]) if layer else 0] = value
  return {
    tap: jnp.stack([values[layer] for layer in sorted(values)])
    if TAPS[tap][0] == "L"
    else values[0]
    for tap, values in found.items()
  }
