"""1. Order: without positions, attention sees a bag of tokens.

A position is turned into a vector of the embedding's size and added to the
token's embedding, so that "cat at 3" and "cat at 7" are different vectors.
"""

from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from gpt2_flax.errors import unknown_name

POSITIONAL_ENCODINGS = ("sinusoidal", "learned", "none")


def sinusoidal_positional_encoding(
  positions: jax.typing.ArrayLike, embed_dim: int, max_period: float = 10_000.0
) -> jax.Array:
  """Fixed waves, one wavelength for each pair of features.

  PE(pos, 2i) = sin(pos / 10000^(2i/D)) and PE(pos, 2i+1) = cos(the same angle):
  "Attention Is All You Need" (Vaswani et al., 2017), section 3.5. The shift by a
  fixed offset is a rotation of each pair, which a linear layer can learn.

  Args:
    positions: integers of any shape [...]; as angles are float32, a value is off by
      some 3e-8 times its position.
    embed_dim: D, the number of features. An odd D ends on a sine.
    max_period: the longest wavelength, divided by 2 pi, that D -> infinity nears.

  Returns:
    float32 [..., D], each value in [-1, 1].
  """
  positions = jnp.asarray(positions, jnp.float32)
  pair = jnp.arange((embed_dim + 1) // 2, dtype=jnp.float32)
  frequencies = max_period ** (-2.0 * pair / embed_dim)
  angles = positions[..., None] * jnp.broadcast_to(
    frequencies, positions.shape + frequencies.shape
  )
  pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
  return pairs.reshape(*positions.shape, -1)[..., :embed_dim]


class PositionalEncoding(nn.Module):
  """Adds a vector for each position to the token embeddings.

  Attributes:
    kind: "sinusoidal" (fixed waves), "learned" (one trained vector a position, as
      in GPT-2) or "none".
    context_length: how many positions a learned encoding has.
    dtype: of the result; None keeps the embeddings' own.
  """

  kind: str = "sinusoidal"
  context_length: int = 1024
  dtype: Any = None

  def __call__(self, x_BTD: jax.Array, positions: jax.Array | None = None) -> jax.Array:
    """Embeddings [B, T, D] plus the encoding of `positions`.

    `positions` is int [B, T], or [1, T] where all rows agree; None counts from 0.
    A learned encoding knows 0 .. context_length - 1 only.
    """
    chex.assert_rank(x_BTD, 3)
    if positions is None:
      positions = jnp.arange(x_BTD.shape[1])[None]
    chex.assert_rank(positions, 2)
    dtype = self.dtype or x_BTD.dtype
    return x_BTD.astype(dtype) + self.encode(positions, x_BTD.shape[-1]).astype(dtype)

  @nn.compact
  def encode(self, positions: jax.Array, embed_dim: int) -> jax.Array:
    """The vectors alone: int [B, T] -> [B, T, embed_dim]."""
    match self.kind:
      case "sinusoidal":
        return sinusoidal_positional_encoding(positions, embed_dim)
      case "learned":
        return nn.Embed(
          self.context_length,
          embed_dim,
          embedding_init=nn.with_logical_partitioning(
            nn.initializers.normal(0.02), ("position", "embed")
          ),
          name="embedding",
        )(positions)
      case "none":
        return jnp.zeros((*positions.shape, embed_dim))
    raise unknown_name("positional_encoding", self.kind, POSITIONAL_ENCODINGS)
