"""1. Order: without positions, attention sees a bag of tokens.

A position is turned into a vector of the embedding's size and added to the
token's embedding, so that "cat at 3" and "cat at 7" are different vectors. Rotary
encoding and ALiBi add no vector: they tell attention how far apart two tokens are when
it compares them.
"""

from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from gpt2_flax.errors import InputError, unknown_name

POSITIONAL_ENCODINGS = ("sinusoidal", "learned", "rotary", "alibi", "none")


def _angles(
  positions: jax.typing.ArrayLike, num_features: int, max_period: float
) -> jax.Array:
  """float32 [..., pairs of features]: pair i turns by max_period^(-2i/D) a step."""
  positions = jnp.asarray(positions, jnp.float32)
  pair = jnp.arange((num_features + 1) // 2, dtype=jnp.float32)
  frequencies = max_period ** (-2.0 * pair / num_features)
  return positions[..., None] * jnp.broadcast_to(
    frequencies, positions.shape + frequencies.shape
  )


def sinusoidal_positional_encoding(
  positions: jax.typing.ArrayLike, embed_dim: int, max_period: float = 10_000.0
) -> jax.Array:
  """Fixed waves, one wavelength for each pair of features.

  PE(pos, 2i) = sin(pos / 10000^(2i/D)) and PE(pos, 2i+1) = cos(the same angle):
  "Attention Is All You Need" (Vaswani et al., 2017), section 3.5. The shift by a
  fixed offset is a rotation of each pair, which a linear layer can learn.

  Args:
    positions: integers of any shape [...]. Angles are float32, so a value is off by
      about 3e-8 times its position.
    embed_dim: D, the number of features. An odd D ends on a sine.
    max_period: as D grows, the longest wavelength nears 2 pi times this.

  Returns:
    float32 [..., D], each value in [-1, 1].
  """
  angles = _angles(positions, embed_dim, max_period)
  pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
  return pairs.reshape(*angles.shape[:-1], -1)[..., :embed_dim]


def rotate_by_position(
  x_BTK: jax.Array, positions_T: jax.Array, max_period: float = 10_000.0
) -> jax.Array:
  """Turns each pair of features by an angle that grows with the position.

  (x_2i, x_2i+1) turns by pos / 10000^(2i/K). The dot product of a query turned by t
  and a key turned by s depends on t - s only: scores know the distance, and nothing
  else about the positions. "RoFormer" (Su et al., 2021), section 3.2.

  Args:
    x_BTK: queries or keys, [B, T, K].
    positions_T: int [T].
    max_period: as in `sinusoidal_positional_encoding`.

  Returns:
    [B, T, K] in x's dtype; the turning is done in float32.

  Raises:
    InputError: K is odd.
  """
  head_dim = x_BTK.shape[-1]
  if head_dim % 2:
    raise InputError(f"head_dim is {head_dim}: rotary encoding needs an even one")
  angles = _angles(positions_T, head_dim, max_period)[None]
  sin, cos = jnp.sin(angles), jnp.cos(angles)
  even, odd = x_BTK[..., 0::2], x_BTK[..., 1::2]
  turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
  return turned.reshape(x_BTK.shape).astype(x_BTK.dtype)


def alibi_slopes(num_heads: int) -> jax.Array:
  """How fast each head's scores fall with distance: float32 [H].

  2^(-8/H), 2^(-16/H), ..., 2^-8: some heads look far, others near. "Train Short, Test
  Long" (Press et al., 2022), section 3. Where H is no power of two, the slopes for
  the nearest lower power n come first, then every other one of those for 2n, as in
  the code that the authors released.
  """
  nearest = 1 << (num_heads.bit_length() - 1)
  exponents = [-8.0 * i / nearest for i in range(1, nearest + 1)]
  between = [-4.0 * i / nearest for i in range(1, 2 * nearest, 2)]
  return 2.0 ** jnp.array((exponents + between)[:num_heads], jnp.float32)


def alibi_bias(
  slope: jax.Array | float, queries_T: jax.Array, keys_S: jax.Array
) -> jax.Array:
  """-slope * distance, which is added to the scores: float32 [1, T, S].

  Attention with linear biases (ALiBi): Press et al. (2022), section 3. As there, it
  is not divided by sqrt(head_dim). Keys after the query count by their distance too;
  only attention that is not causal sees them.

  Args:
    slope: of this head, a scalar.
    queries_T: positions, int [T].
    keys_S: positions, int [S].
  """
  distance_TS = jnp.abs(queries_T[:, None] - keys_S[None, :])
  return -slope * distance_TS[None].astype(jnp.float32)


class PositionalEncoding(nn.Module):
  """Adds a vector for each position to the token embeddings.

  Attributes:
    kind: "sinusoidal" (fixed waves), "learned" (one trained vector a position, as
      in GPT-2); or "rotary", "alibi" or "none", which add nothing here.
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
        table = nn.Embed(
          self.context_length,
          embed_dim,
          embedding_init=nn.with_logical_partitioning(
            nn.initializers.normal(0.02), ("position", "embed")
          ),
          name="embedding",
        )
        if len(positions) == 1:
          return table(positions)
        # Devices that share the table gather it, not the rows of one another.
        table_SD = nn.with_logical_constraint(table.embedding, ("position", None))
        return jnp.take(table_SD, positions, axis=0)
      case "rotary" | "alibi" | "none":
        return jnp.zeros((*positions.shape, embed_dim))
    raise unknown_name("positional_encoding", self.kind, POSITIONAL_ENCODINGS)
