"""Changes to a computation, as data: arrays that say where, and what instead.

Every edit is `where(mask, scale * f(old) + value, old)` at one named step, where f
changes nothing unless `transform` gives one. The arrays are leaves of a pytree, so that
many edits are one `jax.vmap` away:

    masks_NLH = jnp.eye(L * H, dtype=bool).reshape(-1, L, H)
    logits = jax.vmap(
      lambda mask: trace(model, params, tokens, [ablate_heads(mask)], ())[0]
    )(masks_NLH)  # [L * H, B, T, V]: every head ablated, alone

Axes: L layers, H heads, B batch, T query position, S key position, K head_dim,
D embed_dim.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from gpt2_flax.errors import InputError
from gpt2_flax.interpret import sites
from gpt2_flax.interpret.sites import TAPS
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.transformer import GPT2


class Edit(struct.PyTreeNode):
  """where(mask, scale * function(old, *arguments) + value, old); see `make_edit`.

  Attributes:
    site: which step's value is edited: a name of TAPS. Not a leaf of the tree.
    mask: bool, with the site's axes, each of its full size or 1.
    scale, value: numbers, likewise.
    function: of the old value and the arguments; None changes nothing. Not a leaf.
    arguments: any trees of arrays.
  """

  site: str = struct.field(pytree_node=False)
  mask: jax.Array
  scale: jax.Array
  value: jax.Array
  function: Callable[..., jax.Array] | None = struct.field(
    pytree_node=False, default=None
  )
  arguments: tuple[Any, ...] = ()

  def new_value(self, old: jax.Array, scale: jax.Array, value: jax.Array) -> jax.Array:
    """What takes the place of `old` where the mask is True.

    Args:
      old: without layers and heads axes, as the model computes it.
      scale, value: the edit's, of this layer and head.
    """
    if self.function is not None:
      new = self.function(old, *self.arguments)
      if new.shape != old.shape:
        raise InputError(
          f"edit of {self.site!r}: the function returned shape {new.shape}: must be"
          f" {old.shape}, that of its argument"
        )
      old = new
    return scale * old + value


def make_edit(
  site: str,
  mask: jax.typing.ArrayLike,
  scale: jax.typing.ArrayLike,
  value: jax.typing.ArrayLike,
) -> Edit:
  """An edit from arrays that leave out axes along which they do not vary.

  Args:
    site: a name of TAPS.
    mask: says where, so it has the site's first axes: [L, H] for heads.
    scale: likewise.
    value: says what, so it has the site's last axes: [D] for a direction.

  Raises:
    InputError: no such site, or an array with more axes than it has.
  """
  sites.check_site(site)
  rank = len(TAPS[site])
  mask, scale, value = jnp.asarray(mask, bool), jnp.asarray(scale), jnp.asarray(value)
  for name, array in (("mask", mask), ("scale", scale), ("value", value)):
    if array.ndim > rank:
      raise InputError(
        f"{name} of an edit of {site!r} has shape {array.shape}: must have at most"
        f" {rank} axes, {TAPS[site]}"
      )
  return Edit(
    site=site,
    mask=mask.reshape(mask.shape + (1,) * (rank - mask.ndim)),
    scale=scale.reshape(scale.shape + (1,) * (rank - scale.ndim)),
    value=value.reshape((1,) * (rank - value.ndim) + value.shape),
  )


def ablate_heads(
  heads_LH: jax.typing.ArrayLike, value: jax.typing.ArrayLike = 0.0
) -> Edit:
  """Replaces what heads write: by zero, or by another value such as their mean.

  Args:
    heads_LH: bool, True for those to ablate.
    value: what they say instead, [L, H, B, T, K] or its last axes. Their mean over a
      batch and its positions: `trace.head_output.mean((2, 3), keepdims=True)`.
  """
  return make_edit("head_output", heads_LH, 0.0, value)


def scale_heads(scale_LH: jax.typing.ArrayLike) -> Edit:
  """Multiplies what each head says by a number; 1 changes nothing."""
  return make_edit("head_output", True, scale_LH, 0.0)


def patch(
  site: str, value: jax.typing.ArrayLike, mask: jax.typing.ArrayLike = True
) -> Edit:
  """Replaces an activation of this run by that of another (activation patching).

  Source: Vig et al. (2020), "Investigating Gender Bias in Language Models Using Causal
  Mediation Analysis", section 3; Meng et al. (2022), "Locating and Editing Factual
  Associations in GPT", section 2.1.

  Args:
    value: as a `Trace` has it, or its last axes.
    mask: where, the site's first axes; `select` makes one.
  """
  return make_edit(site, mask, 0.0, value)


def replace_pattern(
  weights: jax.typing.ArrayLike, heads_LH: jax.typing.ArrayLike
) -> Edit:
  """Has heads look where they are told: weights [T, S], [B, T, S] or all five axes."""
  return patch("weights", weights, heads_LH)


def steer(
  vector: jax.typing.ArrayLike,
  mask: jax.typing.ArrayLike,
  site: str = "residual_before",
) -> Edit:
  """Adds a vector to the residual stream.

  Source: Turner et al. (2023), "Steering Language Models With Activation Engineering",
  section 3.

  Args:
    vector: [D], or [B, T, D] for one a position.
    mask: bool [L], the layers where it is added; `select` makes one with positions.
    site: of the residual stream: before, between or after.
  """
  return make_edit(site, mask, 1.0, vector)


def transform(
  site: str,
  function: Callable[..., jax.Array],
  *arguments: Any,
  mask: jax.typing.ArrayLike = True,
) -> Edit:
  """Puts a pure function of the value in its place.

  Without a direction, as in Arditi et al. (2024), "Refusal in Language Models Is
  Mediated by a Single Direction", section 2.4:

      def without(x_BTD, direction_D):
        return x_BTD - (x_BTD @ direction_D)[..., None] * direction_D

      edit = transform("residual_after", without, direction_D)

  Args:
    site: a name of TAPS.
    function: of the value in one layer and head, so [B, T, D], [B, T, K], [B, T, S] or
      [B, T, F], and of the arguments. It returns an array of the same shape. Under jit
      it is known by its identity, so define it once.
    *arguments: trees of arrays, such as the weights of a sparse autoencoder; they may
      be traced, differentiated and vmapped over.
    mask: where, the site's first axes; `select` makes one.
  """
  edit = make_edit(site, mask, 1.0, 0.0)
  return edit.replace(function=function, arguments=arguments)


def select(
  model: Any,
  site: str,
  *,
  layers: Sequence[int] | None = None,
  heads: Sequence[int] | None = None,
  positions: Sequence[int] | None = None,
  length: int | None = None,
) -> jax.Array:
  """A mask for edits of a site, by index; what is not given is all.

  Args:
    model: a GPT2, or what `edited` returns.
    site: a name of TAPS.
    layers, heads: which ones, counted from 0.
    positions: query positions; they need `length`, T of the call that is edited.
    length: T.

  Returns:
    bool, with all axes of the site, each 1 or of its full size.

  Raises:
    InputError: the site has no such axis, or the axis no such index.
  """
  sites.check_site(site)
  mask = jnp.ones((1,) * len(TAPS[site]), bool)
  if positions is not None and length is None:
    raise InputError("length is None: positions need it")
  for name, axis, indices, size in (
    ("layers", "L", layers, model.config.num_layers),
    ("heads", "H", heads, model.config.num_heads),
    ("positions", "T", positions, length),
  ):
    if indices is None or size is None:
      continue
    if axis not in TAPS[site]:
      raise InputError(f"{name} of {site!r}: its axes are {TAPS[site]}")
    for index in indices:
      if not 0 <= index < size:
        allowed = ", ".join(map(str, range(size)))
        raise InputError(f"{name} has {index}: allowed: {allowed}")
    chosen = jnp.isin(jnp.arange(size), jnp.array(indices, int))
    others = tuple(i for i, letter in enumerate(TAPS[site]) if letter != axis)
    mask = mask & jnp.expand_dims(chosen, others)
  return mask


@dataclasses.dataclass(frozen=True)
class EditedModel:
  """A model whose params hold edits too; make it with `edited`.

  It is called as a GPT2 is, and may be a static argument of jit as a GPT2 may: what is
  done to it is in the params.
  """

  model: GPT2

  @property
  def config(self) -> GPT2Config:
    return self.model.config

  def apply(self, params: Any, *args: Any, method: Any = None, **kwargs: Any) -> Any:
    """As `GPT2.apply`, with the edits in `params["edits"]` made on the way."""
    return sites.run(
      self.model, params, params["edits"], (), *args, method=method, **kwargs
    )[0]


def edited(
  model: Any, params: Any, edits: Sequence[Edit]
) -> tuple[EditedModel, dict[str, Any]]:
  """A model and params that can be used wherever those of a GPT2 can, with edits made.

  `generation.generate(*edited(model, params, edits), prompts, ...)` writes with them.
  There the prompts are read first, then each token alone (T is 1), so an edit must
  hold for any T and S: heads ablated or scaled, the stream steered at all positions.
  One that has a size for T or S (a pattern, a patch at chosen positions) is refused
  where it does not fit.

  To differentiate, take `params["params"]` or what the edits are made from: masks are
  bool.

  Args:
    model: a GPT2, or what this returns; then the edits come after those it has.
  """
  if isinstance(model, EditedModel):
    return model, params | {"edits": (*params["edits"], *edits)}
  return EditedModel(model), {**params, "edits": tuple(edits)}
