"""The steps of GPT-2 by name: where to look, and where to reach in.

The model has no hooks. Its steps are methods, and `nn.intercept_methods` stands
between them: inside the call, so that nothing is left behind in jit's caches or
anywhere else. Arrays travel in and out as variable collections, which is how they
come to each head under `nn.vmap`.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import re
from typing import Any, NamedTuple

from flax import linen as nn
from flax import traverse_util
from flax.linen import module as flax_module
import jax
import jax.numpy as jnp

from gpt2_flax.errors import InputError, unknown_name
from gpt2_flax.layers.layer_stacking import unstack_layers
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.multihead_attention import MultiHeadAttention
from gpt2_flax.positional_encoding import PositionalEncoding
from gpt2_flax.self_attention import SelfAttention
from gpt2_flax.transformer import Block, FeedForward, GPT2


class Site(NamedTuple):
  """One step's value.

  Attributes:
    axes: B batch (1 for `positions` that all rows share), T query position, S key
      position, L layers, H heads, K head_dim, D embed_dim, F mlp_dim.
    module: the path of the module that computes it, inside its block where it has a
      layers axis. Its edits are variables of that module.
    method: of the module.
    result: which of the method's results it is.
  """

  axes: str
  module: tuple[str, ...]
  method: str
  result: int = 0


_ATTENTION = ("attention",)
_HEADS = ("attention", "heads")
_FEED_FORWARD = ("feed_forward",)

# In the order of the control flow
SITES = {
  # what positions are added to, and the vectors added to them
  "token_embeddings": Site("BTD", (), "embed_tokens"),
  "positions": Site("BTD", ("positional_encoding",), "encode"),
  # the residual stream as each block gets it
  "residual_before": Site("LBTD", (), "receive"),
  "query": Site("LHBTK", _HEADS, "project", 0),
  "key": Site("LHBTK", _HEADS, "project", 1),
  "value": Site("LHBTK", _HEADS, "project", 2),
  "scores": Site("LHBTS", _HEADS, "scores"),  # scaled; nothing added or masked yet
  "weights": Site("LHBTS", _HEADS, "weights"),
  "head_output": Site("LHBTK", _HEADS, "mix"),  # the values, averaged by the weights
  # all heads, through the output projection
  "attention_output": Site("LBTD", _ATTENTION, "attend"),
  # the residual stream between a block's attention and its feed-forward
  "residual_between": Site("LBTD", (), "read"),
  "mlp_hidden": Site("LBTF", _FEED_FORWARD, "hidden"),  # after the activation
  "mlp_output": Site("LBTD", _FEED_FORWARD, "__call__"),
  "residual_after": Site("LBTD", (), "think"),  # as the block leaves it
  "final_norm": Site("BTD", ("final_norm",), "__call__"),
}
TAPS = {name: site.axes for name, site in SITES.items()}

# The parts of a GPT2, known by their class; others by their name.
PARTS = {
  GPT2: "",
  PositionalEncoding: "positional_encoding",
  Block: "blocks",
  MultiHeadAttention: "attention",
  SelfAttention: "heads",
  FeedForward: "feed_forward",
}
WHOLE_PASSES = (None, "__call__", "hidden", "extend")  # methods that reach all sites

_SITES_OF: dict[tuple[str, str], list[str]] = {}  # by part and method
for _name, _site in SITES.items():
  _outside = "blocks" if _site.axes.startswith("L") else ""
  _part = _site.module[-1] if _site.module else _outside
  _SITES_OF.setdefault((_part, _site.method), []).append(_name)


def check_site(name: str) -> None:
  """Raises an InputError unless SITES has the name."""
  if name not in SITES:
    raise unknown_name("tap", name, SITES)


def plain(model: GPT2, params: Any) -> tuple[GPT2, dict[str, Any]]:
  """The same model and params, with every layer and every step of it visible.

  Stacked layers are taken apart. Flash attention has no scores and weights to show; the
  explicit one is its equal.
  """
  config = model.config.plain
  if config.attention == "flash":
    config = dataclasses.replace(config, attention="explicit")
  weights = unstack_layers(nn.unbox(params["params"]))
  return model.clone(config=config), {**params, "params": weights}


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
    taps: names of SITES.

  Returns:
    What the model returns, and the values of the taps that it came by.

  Raises:
    InputError: an edit does not fit the model or this call, or a whole pass of the
      model never reached its site. The same for a tap, unless all taps are asked for.
  """
  model, params = plain(model, params)
  functions: dict[str, list[Callable]] = {}
  for edit in edits:
    functions.setdefault(edit.site, []).append(edit.new_value)

  def change(module: nn.Module, site: str, value: jax.Array) -> jax.Array:
    arrays = module.get_variable("edits", _variable(site), ())
    for (mask, scale, added), new_value in zip(
      arrays, functions.get(site, ()), strict=True
    ):
      _check_fits(site, value.shape, (mask, scale, added))
      edited = jnp.where(mask, new_value(value, scale, added), value)
      value = edited.astype(value.dtype)
    return value

  variables = {"params": params["params"], "edits": _place(edits, model.config)}
  out, found, reached = _intercepted(
    model, variables, taps, change, method, args, kwargs
  )
  if method in WHOLE_PASSES:  # other methods are parts of a pass
    _check_reached("edit", (edit.site for edit in edits), reached)
  if set(taps) != set(TAPS):  # all of them means all that the model has
    _check_reached("tap", taps, reached)
  return out, {
    tap: jnp.stack([value for _, value in sorted(values, key=_layer)])
    if TAPS[tap].startswith("L")
    else values[0][1]
    for tap, values in found.items()
  }


def run_parts(
  module: nn.Module, variables: Any, taps: Collection[str], *args: Any, **kwargs: Any
) -> tuple[Any, dict[str, jax.Array]]:
  """The same for a part on its own, or another module that holds parts.

  Returns:
    What the module returns, and its taps. Those of a part have no layers axis, and a
    head's no heads axis. Otherwise the parts are stacked in the order they are called
    in, whatever their names.

  Raises:
    InputError: there is no part in the module, or its parts differ in shape.
  """

  def keep_as_it_is(module: nn.Module, site: str, value: jax.Array) -> jax.Array:
    del module, site
    return value

  variables = nn.unbox(variables)
  out, found, reached = _intercepted(
    module, variables, taps, keep_as_it_is, None, args, kwargs
  )
  if not reached:
    parts = ", ".join(part.__name__ for part in PARTS)
    raise InputError(
      f"{type(module).__name__} has nothing to trace: must be or hold one of {parts}"
    )
  if set(taps) != set(TAPS):
    _check_reached("tap", taps, reached)
  kept = {}
  for tap, values in found.items():
    alone = len(values) == 1 and "L" not in TAPS[tap]
    if alone or isinstance(module, tuple(PARTS)):
      kept[tap] = values[0][1]
      continue
    shapes = {"/".join(path): value.shape for path, value in values}
    if len(set(shapes.values())) > 1:
      raise InputError(f"tap {tap!r} has several shapes, {shapes}: must have one")
    kept[tap] = jnp.stack([value for _, value in values])
  return out, kept


Found = list[
  tuple[tuple[str, ...], jax.Array]
]  # (path of the module, value), as called


def _intercepted(
  model: nn.Module,
  variables: Any,
  taps: Collection[str],
  change: Callable[[nn.Module, str, jax.Array], jax.Array],
  method: Any,
  args: Sequence[Any],
  kwargs: dict[str, Any],
) -> tuple[Any, dict[str, Found], Collection[str]]:
  """What the model returns, the taps' values, and the sites that it came by."""
  calls: dict[tuple[str, ...], int] = {}  # the module's path: which call it was
  under_way: set[tuple[Any, str]] = set()

  def intercept(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    module, step = context.module, (context.module.path, context.method_name)
    sites = _SITES_OF.get((_part_of(module), context.method_name), ())
    if not sites or step in under_way:  # a subclass's method calls its base class's
      return call(*args, **kwargs)
    under_way.add(step)
    try:
      out = call(*args, **kwargs)
    finally:
      under_way.remove(step)
    values = list(out) if isinstance(out, tuple) else [out]  # a cache may follow
    for site in sites:
      i = SITES[site].result
      values[i] = change(module, site, values[i])
      calls.setdefault((*module.path, _variable(site)), len(calls))
      if site in taps:
        module.sow("trace", _variable(site), values[i], lambda _, x: x, lambda: None)
    return tuple(values) if isinstance(out, tuple) else values[0]

  with _outermost(intercept):
    out_and_state: Any = model.apply(
      variables, *args, method=method, mutable=["trace"], **kwargs
    )
  out, state = out_and_state
  kept: Any = traverse_util.flatten_dict(state.get("trace", {}))
  found: dict[str, Found] = {}
  for path in sorted(kept, key=lambda path: calls[path]):
    found.setdefault(path[-1].removeprefix("at_"), []).append((path[:-1], kept[path]))
  return out, found, {path[-1].removeprefix("at_") for path in calls}


@contextlib.contextmanager
def _outermost(interceptor: Callable) -> Iterator[None]:
  """As `nn.intercept_methods`, but around those that are entered already.

  If the caller has interceptors, the model goes on with what they return, so ours must
  see that value. Flax puts a new interceptor inside of the others, and has no public
  name for another order.
  """
  stack = flax_module._global_interceptor_stack
  others = [stack.pop() for _ in range(len(stack))][::-1]
  for each in (interceptor, *others):
    stack.push(each)
  try:
    yield
  finally:
    for _ in (interceptor, *others):
      stack.pop()
    for each in others:
      stack.push(each)


def _part_of(module: nn.Module) -> str:
  for cls, part in PARTS.items():
    if isinstance(module, cls):
      return part
  return re.sub(r"_\d+$", "", module.name or "")


def _layer(found: tuple[tuple[str, ...], jax.Array]) -> int:
  return int(found[0][0].removeprefix("blocks_"))


def _variable(site: str) -> str:
  """A name that no submodule has: `query` is one in a head."""
  return f"at_{site}"


def _check_reached(what: str, wanted: Iterable[str], reached: Collection[str]) -> None:
  """Raises an InputError for a wanted site that the model never came by."""
  for site in wanted:
    if site not in reached:
      has = ", ".join(name for name in SITES if name in reached)
      raise InputError(f"{what} {site!r} hit nothing: this model has {has}")


def _check_fits(site: str, shape: tuple[int, ...], arrays: Iterable[jax.Array]) -> None:
  axes = TAPS[site].lstrip("LH")
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
    site, arrays = SITES[edit.site], (edit.mask, edit.scale, edit.value)
    for array in arrays:
      if jnp.ndim(array) != len(site.axes):
        raise InputError(
          f"edit of {edit.site!r}: an array has shape {jnp.shape(array)}: must have"
          f" {len(site.axes)} axes, {site.axes}"
        )
      for axis, size in zip("LH", (config.num_layers, config.num_heads), strict=True):
        given = array.shape[site.axes.index(axis)] if axis in site.axes else 1
        if given not in (1, size):
          raise InputError(
            f"edit of {edit.site!r}: axis {axis} is {given}: must be 1 or {size}"
          )
    path = (*site.module, _variable(edit.site))
    if "L" not in site.axes:
      placed.setdefault(path, []).append(arrays)
      continue
    for layer in range(config.num_layers):
      of_layer = [array[layer if len(array) > 1 else 0] for array in arrays]
      if "H" in site.axes:  # nn.vmap gives each head its slice
        of_layer = [
          jnp.broadcast_to(array, (config.num_heads, *array.shape[1:]))
          for array in of_layer
        ]
      placed.setdefault((f"blocks_{layer}", *path), []).append(of_layer)
  return traverse_util.unflatten_dict(placed)
