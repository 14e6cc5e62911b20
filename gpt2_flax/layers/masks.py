"""Masks that a caller brings, checked once; and that of texts that share a window."""

import jax
import jax.numpy as jnp

from gpt2_flax.errors import InputError


def checked_mask(mask: jax.typing.ArrayLike, shape: tuple[int, ...]) -> jax.Array:
  """The mask with as many axes as `shape`, which are [B, T, S] or [B, H, T, S].

  Raises:
    InputError: it is not bool, or cannot be broadcast to `shape`.
  """
  mask = jnp.asarray(mask)
  axes = {3: "[B, T, S]", 4: "[B, H, T, S]"}[len(shape)]
  if mask.dtype != bool:
    raise InputError(
      f"mask is of {mask.dtype}: must be of bool, True where a query may look"
    )
  padded = (1,) * (len(shape) - mask.ndim) + mask.shape
  fits = all(given in (1, size) for given, size in zip(padded, shape, strict=False))
  if len(padded) != len(shape) or not fits:
    raise InputError(
      f"mask has shape {list(mask.shape)}: must be broadcastable to {axes} ="
      f" {list(shape)}"
    )
  return mask.reshape(padded)


def apart(documents_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
  """What makes each document of a window as it would be alone there.

  Args:
    documents_BT: int, which document each token belongs to; those of one document stand
      together.

  Returns:
    Positions, int [B, T], which count from 0 in each document; and a mask, bool
    [B, T, S], that lets a token see those of its own document only.
  """
  index_1T = jnp.arange(documents_BT.shape[1])[None]
  is_first_BT = documents_BT != jnp.roll(documents_BT, 1, axis=1)
  starts_BT = jax.lax.cummax(jnp.where(is_first_BT, index_1T, 0), axis=1)
  return index_1T - starts_BT, documents_BT[:, :, None] == documents_BT[:, None, :]
