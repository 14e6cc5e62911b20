"""2. One head: each token asks all earlier ones, and takes from those that answer.

Letters in names are axes: B batch, T query position, S key position, D embed_dim,
K head_dim. `scores_BTS[b, t, s]` says how well token t's question fits token s.
"""

from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from gpt2_flax.errors import InputError
from gpt2_flax.layers.dropout import Dropout
from gpt2_flax.layers.flash_attention import flash_attention
from gpt2_flax.layers.key_values import KeyValues
from gpt2_flax.layers.linear import linear
from gpt2_flax.layers.masks import checked_mask
from gpt2_flax.positional_encoding import alibi_bias, rotate_by_position
from gpt2_flax.registry import Registry


class SelfAttention(nn.Module):
  """Scaled dot-product attention with one head.

  softmax(Q K^T / sqrt(head_dim)) V: "Attention Is All You Need" (Vaswani et al.,
  2017), section 3.2.1. Each step is a small method. Read or test one on its own;
  override one in a subclass, and you have another kind of head (docs/own_parts.md);
  see or change its values with `interpret.trace`. (`nn.intercept_methods` does that
  too, but a function that is jitted already ignores an interceptor.)

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
    slope: jax.Array | None = None,
  ) -> jax.Array:
    """What each token takes from those it sees: [B, T, D] -> [B, T, K].

    Args:
      x_BTD: the tokens, as vectors.
      mask: bool, broadcastable to [B, T, S]; True lets query t see key s. It only
        takes away from what `visible` allows (padding, packed documents). A row that
        may see nothing gives zeros.
      slope: float scalar, what a score loses for each token of distance
        (`alibi_bias`); None for nothing.

    Raises:
      InputError: the mask is not bool, or does not fit.
    """
    return self.attend(x_BTD, mask, slope=slope)[0]

  def attend(
    self,
    x_BTD: jax.Array,
    mask: jax.Array | None = None,
    cache: KeyValues | None = None,
    start: jax.Array | int = 0,
    slope: jax.Array | None = None,
  ) -> tuple[jax.Array, KeyValues | None]:
    """As `__call__`, and over the tokens in a cache too.

    Args:
      x_BTD, mask, slope: as in `__call__`.
      cache: keys and values of S slots, those before `start` filled. The keys and
        values of x go to the slots from `start` on, which must fit.
      start: int scalar, the slot of x's first token; it counts with a cache only.

    Returns:
      [B, T, K], and the extended cache; None where none was given.
    """
    chex.assert_rank(x_BTD, 3)
    start = 0 if cache is None else start
    query_BTK, key_BSK, value_BSK = self.project(x_BTD)
    if self.rotary:
      query_BTK, key_BSK = self.rotate(query_BTK, key_BSK, start)
    if cache is not None:
      cache = key_BSK, value_BSK = cache.extended(key_BSK, value_BSK, start)
    slots_T = start + jnp.arange(query_BTK.shape[1])
    out_BTK = self.read(query_BTK, key_BSK, value_BSK, slots_T, mask, slope)
    return out_BTK, cache

  def project(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What each token asks, what it answers to, and what it hands over: [B, T, K]."""
    return self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)

  def rotate(
    self, query_BTK: jax.Array, key_BTK: jax.Array, start: jax.Array | int = 0
  ) -> tuple[jax.Array, jax.Array]:
    """Both turned by their slots, from `start` on, so that scores know the distance.

    Slots serve as positions, because left padding shifts queries and keys alike.
    """
    slots_T = start + jnp.arange(query_BTK.shape[1])
    return (
      rotate_by_position(query_BTK, slots_T),
      rotate_by_position(key_BTK, slots_T),
    )

  def read(
    self,
    query_BTK: jax.Array,
    key_BSK: jax.Array,
    value_BSK: jax.Array,
    slots_T: jax.Array,
    mask: jax.Array | None,
    slope: jax.Array | None,
  ) -> jax.Array:
    """Scores, mask, weights, mix: [B, T, K]. Query t stands at slot slots_T[t]."""
    scores_BTS = self.scores(query_BTK, key_BSK)
    slots_S = jnp.arange(key_BSK.shape[1])
    if slope is not None:
      scores_BTS += alibi_bias(slope, slots_T, slots_S)
    allowed_BTS = self.visible(slots_T, slots_S)
    if mask is not None:
      allowed_BTS &= checked_mask(mask, scores_BTS.shape)
    weights_BTS = self.weights(scores_BTS, allowed_BTS)
    return self.mix(weights_BTS, value_BSK)

  def scores(self, query_BTK: jax.Array, key_BSK: jax.Array) -> jax.Array:
    """Dot products over sqrt(head_dim), float32 [B, T, S].

    A dot product of K independent unit-variance terms has variance K; the division
    keeps the scores' spread at 1, where the softmax still has a gradient.
    """
    scores_BTS = jnp.einsum(
      "BTK,BSK->BTS", query_BTK, key_BSK, preferred_element_type=jnp.float32
    )
    return scores_BTS / (self.temperature * jnp.sqrt(self.head_dim))

  def visible(self, slots_T: jax.Array, slots_S: jax.Array) -> jax.Array:
    """bool [1, T, S]: True where the query at a slot may see the key at a slot."""
    if not self.causal:
      return jnp.ones((1, len(slots_T), len(slots_S)), bool)
    return (slots_S[None, :] <= slots_T[:, None])[None]

  def weights(self, scores_BTS: jax.Array, allowed_BTS: jax.Array) -> jax.Array:
    """Softmax over the allowed keys, float32 [B, T, S]; rows sum to 1, or to 0.

    A key whose score is -inf is not allowed either. A row with no allowed key would
    divide 0 by 0 if its scores were -inf. With the lowest finite score it is uniform,
    and the last line makes it zero, in the gradient too.
    """
    scores_BTS = jnp.where(allowed_BTS, scores_BTS, -jnp.inf)
    seen_BTS = scores_BTS > -jnp.inf
    lowest = jnp.finfo(scores_BTS.dtype).min
    weights_BTS = jax.nn.softmax(jnp.where(seen_BTS, scores_BTS, lowest))
    return jnp.where(seen_BTS, weights_BTS, 0.0)

  def mix(self, weights_BTS: jax.Array, value_BSK: jax.Array) -> jax.Array:
    """The values, averaged by the weights: [B, T, K]."""
    weights_BTS = self.dropout(weights_BTS).astype(value_BSK.dtype)
    return jnp.einsum("BTS,BSK->BTK", weights_BTS, value_BSK)


class FlashSelfAttention(SelfAttention):
  """The same head in one kernel, for accelerators: equal up to rounding.

  Scores and weights are never in memory, so `scores`, `weights` and `mix` are not
  called. With a cache they are called, as in `SelfAttention`. It has gradients in
  `MultiHeadAttention` only, not as a head on its own.

  Raises:
    InputError: dropout_rate is not 0: there are no weights to drop.
  """

  def read(self, query_BTK, key_BSK, value_BSK, slots_T, mask, slope):
    if self.dropout_rate:
      raise InputError(
        f"dropout_rate is {self.dropout_rate}: must be 0 with flash attention, which"
        " has no weights to drop"
      )
    num_keys = key_BSK.shape[1]
    if len(slots_T) != num_keys:  # a cache, or a part of a text
      return super().read(query_BTK, key_BSK, value_BSK, slots_T, mask, slope)
    if mask is not None:
      mask = checked_mask(mask, (len(query_BTK), num_keys, num_keys))
    bias = None if slope is None else alibi_bias(slope, slots_T, slots_T)
    scale = 1 / (self.temperature * self.head_dim**0.5)
    return flash_attention(
      query_BTK, key_BSK, value_BSK, mask, bias, causal=self.causal, scale=scale
    )


# Heads by their name in `GPT2Config.attention`. To add yours: docs/own_parts.md
HEADS = Registry(
  "model.attention", {"explicit": SelfAttention, "flash": FlashSelfAttention}
)
