"""Keys and values of tokens already read, so that they are computed once.

Axes: B batch, T new tokens, S slots, K head_dim.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class KeyValues(NamedTuple):
  """What one head keeps of S tokens: each [B, S, K]; of many heads [H, B, S, K]."""

  key: jax.Array
  value: jax.Array

  def extended(
    self, key_BTK: jax.Array, value_BTK: jax.Array, start: jax.typing.ArrayLike
  ) -> "KeyValues":
    """The cache with these in the T slots from `start` on.

    Each slot selects its old or its new values, which XLA does in place. Under vmap,
    `dynamic_update_slice` would become a scatter, which copies the whole cache several
    times.
    """
    index_S = jnp.arange(self.key.shape[1]) - start
    is_new_S = (index_S >= 0) & (index_S < key_BTK.shape[1])

    def write(cached_BSK: jax.Array, new_BTK: jax.Array) -> jax.Array:
      new_BSK = jnp.take(new_BTK, index_S, axis=1, mode="clip")
      return jnp.where(is_new_S[None, :, None], new_BSK, cached_BSK)

    return KeyValues(write(self.key, key_BTK), write(self.value, value_BTK))
