"""2. One head: each token asks all earlier ones, and takes from those that answer.

Letters in names are axes: B batch, T query position, S key position, D embed_dim,
K head_dim. `scores_BTS[b, t, s]` says how well token t's question fits token s.
"""

from typing import Any, NamedTuple

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from gpt2_flax.dropout import Dropout
from gpt2_flax.linear import linear
from gpt2_flax.positional_encoding import alibi_bias, rotate_by_position


class KeyValues(NamedTuple):
  """Keys and values of tokens already seen, so that they are computed once.

  Each is [B, S, K] with S slots; in multi-head attention [H, B, S, K].
  """

  key: jax.Array
  value: jax.Array

  def extended(
    self, key_BTK: jax.Array, value_BTK: jax.Array, start: jax.typing.ArrayLike
  ) -> "KeyValues":
    """With these in the T slots from `start` on.

    Each slot chooses, which XLA does in place; `dynamic_update_slice` would become a
    scatter under vmap, which copies the whole cache several times.
    """
    index_S = jnp.arange(self.key.shape[1]) - start
    is_new_S = (index_S >= 0) & (index_S < key_BTK.shape[1])

    def place(cached_BSK: jax.Array, new_BTK: jax.Array) -> jax.Array:
      new_BSK = jnp.take(new_BTK, index_S, axis=1, mode="clip")
      return jnp.where(is_new_S[None, :, None], new_BSK, cached_BSK)

    return KeyValues(place(self.key, key_BTK), place(self.value, value_BTK))


def causal_mask(num_queries: int, num_keys: int, start: jax.typing.ArrayLike = 0):
  """bool [1, T, S]: True where query t, which stands at slot start + t, may look."""
  query_slot = start + jnp.arange(num_queries)[:, None]
  key_slot = jnp.arange(num_keys)[None, :]
  return (key_slot <= query_slot)[None]


class SelfAttention(nn.Module):
  """Scaled dot-product attention with one head.

  softmax(Q K^T / sqrt(head_dim)) V: "Attention Is All You Need" (Vaswani et al.,
  2017), section 3.2.1. The steps are methods of their own, so that each can be read,
  tested, captured or replaced (`nn.intercept_methods`) on its own.

  Attributes:
    head_dim: K, the size of queries, keys and values.
    causal: a token sees itself and earlier ones only. False is for study.
    dropout_rate: share of attention weights dropped when a "dropout" rng is given.
    dtype: compute dtype; None takes the input's. The softmax is float32 always.
    kernel_init: of the three projections; GPT-2 uses normal(0.02).
    temperature: divides the scores, on top of sqrt(head_dim).
    rotary: queries and keys are turned by their positions (`rotate_by_position`).
  """

  head_dim: int
  causal: bool = True
  dropout_rate: float = 0.0
  dtype: Any = None
  kernel_init: nn.initializers.Initializer = nn.initializers.normal(0.02)
  temperature: float = 1.0
  rotary: bool = False

  def setup(self):
    def projection():
      axes = ("embed", "head_dim")
      return linear(self.head_dim, axes, self.kernel_init, self.dtype)

    self.query = projection()
    self.key = projection()
    self.value = projection()
    self.dropout = Dropout(self.dropout_rate)

  def __call__(
    self,
    x_BTD: jax.Array,
    mask: jax.Array | None = None,
    cache: KeyValues | None = None,
    start: jax.Array | int = 0,
    slope: jax.Array | None = None,
  ) -> Any:
    """Attends over x, and over the cached tokens before it where there are any.

    Args:
      x_BTD: [B, T, D].
      mask: bool, broadcastable to [B, T, S]; True lets query t see key s. It only
        takes away from what `causal` allows (padding, packed documents). A row
        that may see nothing gives zeros.
      cache: keys and values of S slots, those before `start` filled. x's go to the
        slots from `start` on, which must fit.
      start: int scalar, the slot of x's first token; only used with a cache.
      slope: float scalar, what a score loses for each token between (`alibi_bias`);
        None for nothing.

    Returns:
      [B, T, K], or that and the extended cache where a cache was given.
    """
    chex.assert_rank(x_BTD, 3)
    if cache is None:
      start = 0
    query_BTK, key_BSK, value_BSK = self.project(x_BTD)
    if self.rotary:
      query_BTK, key_BSK = self.rotate(query_BTK, key_BSK, start)
    if cache is not None:
      cache = key_BSK, value_BSK = cache.extended(key_BSK, value_BSK, start)

    scores_BTS = self.scores(query_BTK, key_BSK)
    num_queries, num_keys = scores_BTS.shape[1:]
    if slope is not None:
      slots_T, slots_S = start + jnp.arange(num_queries), jnp.arange(num_keys)
      scores_BTS += alibi_bias(slope, slots_T, slots_S)
    allowed_BTS = jnp.ones((1, 1, 1), bool) if mask is None else mask
    if self.causal:
      allowed_BTS &= causal_mask(num_queries, num_keys, start)
    weights_BTS = self.weights(scores_BTS, allowed_BTS)
    out_BTK = self.mix(weights_BTS, value_BSK)
    return out_BTK if cache is None else (out_BTK, cache)

  def project(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What each token asks, what it answers to, and what it hands over: [B, T, K]."""
    return self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)

  def rotate(
    self, query_BTK: jax.Array, key_BTK: jax.Array, start: jax.Array | int = 0
  ) -> tuple[jax.Array, jax.Array]:
    """Both turned by their slots, from `start` on, so that scores know the distance.

    Slots will do for positions: left padding shifts queries and keys alike.
    """
    slots_T = start + jnp.arange(query_BTK.shape[1])
    return (
      rotate_by_position(query_BTK, slots_T),
      rotate_by_position(key_BTK, slots_T),
    )

  def scores(self, query_BTK: jax.Array, key_BSK: jax.Array) -> jax.Array:
    """Dot products over sqrt(head_dim), float32 [B, T, S].

    A dot product of K independent unit-variance terms has variance K; the division
    keeps the scores' spread at 1, where the softmax still has a gradient.
    """
    scores_BTS = jnp.einsum(
      "BTK,BSK->BTS", query_BTK, key_BSK, preferred_element_type=jnp.float32
    )
    return scores_BTS / (self.temperature * jnp.sqrt(self.head_dim))

  def weights(self, scores_BTS: jax.Array, allowed_BTS: jax.Array) -> jax.Array:
    """Softmax over the allowed keys, float32 [B, T, S]; rows sum to 1, or to 0.

    A row with no allowed key would divide 0 by 0 at -inf; with the lowest finite
    score it is uniform, and the last line makes it zero, in the gradient too.
    """
    lowest = jnp.finfo(scores_BTS.dtype).min
    weights_BTS = jax.nn.softmax(jnp.where(allowed_BTS, scores_BTS, lowest))
    return jnp.where(allowed_BTS, weights_BTS, 0.0)

  def mix(self, weights_BTS: jax.Array, value_BSK: jax.Array) -> jax.Array:
    """The values, averaged by the weights: [B, T, K]."""
    weights_BTS = self.dropout(weights_BTS).astype(value_BSK.dtype)
    return jnp.einsum("BTS,BSK->BTK", weights_BTS, value_BSK)
