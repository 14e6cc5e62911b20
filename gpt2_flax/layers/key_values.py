"""Keys and values of tokens already read, so that they are computed once.

Axes: B batch, T new tokens, S slots, K head_dim.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

_write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=-2)


class KeyValues(NamedTuple):
  """What one head keeps of S tokens: each [B, S, K]; of many heads [H, B, S, K]."""

  key: jax.Array
  value: jax.Array

  def extended(
    self, key_BTK: jax.Array, value_BTK: jax.Array, start: jax.typing.ArrayLike
  ) -> "KeyValues":
    """The cache with these in the T slots from `start` on, which must be there.

    The slots are written in place where the old cache is needed no more, as in a loop.
    """
    start = jnp.asarray(start)
    return KeyValues(
      written(self.key, key_BTK.astype(self.key.dtype), start),
      written(self.value, value_BTK.astype(self.value.dtype), start),
    )


def squeezed(leaf: jax.Array) -> tuple[int, ...]:
  """The shape of an array of a cache without axes of size 1 before the slots.

  XLA's products are without them. If the array were not, a loop would keep both.
  """
  return tuple(n for n in leaf.shape[:-2] if n > 1) + leaf.shape[-2:]


# Under vmap XLA would be given a scatter, which copies the whole cache several times.
# But all heads write to the same slots: one slice, of an array with one more axis.
@jax.custom_batching.custom_vmap
def _slice_written(cached: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
  written = _write(cached.reshape(squeezed(cached)), new.reshape(squeezed(new)), start)
  return written.reshape(cached.shape)


@_slice_written.def_vmap
def _written_for_all(axis_size, in_batched, cached, new, start):
  if in_batched[2]:  # each to slots of its own
    axes = [0 if batched else None for batched in in_batched]
    return jax.vmap(_write, axes)(cached, new, start), True
  cached, new = (
    x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
    for x, batched in zip((cached, new), in_batched, strict=False)
  )
  return _slice_written(cached, new, start), True


@jax.custom_jvp  # JAX has no gradient for a rule of vmap like the one above
def written(cached: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
  """[..., S, K] with `new` [..., T, K] in the slots from `start` on."""
  return _slice_written(cached, new, start)


@written.defjvp
def _slope(primals, tangents):
  start = primals[2]
  return written(*primals), _write(tangents[0], tangents[1], start)
