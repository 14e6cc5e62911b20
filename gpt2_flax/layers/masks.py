"""Masks that a caller brings: checked once, where they come in."""

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
