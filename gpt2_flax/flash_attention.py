"""The same attention in one kernel, for accelerators: scores are never in memory.

`SelfAttention` writes down [T, S] scores and weights for every head. A kernel that goes
through the keys block by block and keeps running sums needs neither: "FlashAttention"
(Dao et al., 2022), algorithm 1. What it computes is equal; what is on the way cannot be
looked at.

Axes: B batch, T query position, S key position, H heads, K head_dim.
"""

import jax
from jax.custom_batching import custom_vmap
import jax.numpy as jnp

from gpt2_flax.errors import InputError
from gpt2_flax.positional_encoding import alibi_bias
from gpt2_flax.self_attention import causal_mask, KeyValues, SelfAttention


class FlashSelfAttention(SelfAttention):
  """`SelfAttention` with scores, weights and mix in one: a head of many.

  Same parameters, same arguments, same values up to rounding. With a cache it is
  `SelfAttention` itself. Gradients are there under vmap only, as in
  `MultiHeadAttention`.

  Raises:
    InputError: dropout_rate is not 0: there are no weights to drop.
  """

  def __call__(
    self,
    x_BTD: jax.Array,
    mask: jax.Array | None = None,
    cache: KeyValues | None = None,
    start: jax.Array | int = 0,
    slope: jax.Array | None = None,
  ):
    if self.dropout_rate:
      raise InputError(
        f"dropout_rate is {self.dropout_rate}: must be 0 with flash attention, which"
        " has no weights to drop"
      )
    if cache is not None:
      return super().__call__(x_BTD, mask, cache, start, slope)
    query_BTK, key_BSK, value_BSK = self.project(x_BTD)
    if self.rotary:
      query_BTK, key_BSK = self.rotate(query_BTK, key_BSK)
    scale = 1 / (self.temperature * self.head_dim**0.5)
    return _attend(
      query_BTK, key_BSK, value_BSK, mask, slope, causal=self.causal, scale=scale
    )


def _attend(
  query_BTK: jax.Array,
  key_BSK: jax.Array,
  value_BSK: jax.Array,
  mask: jax.Array | None,
  slope: jax.Array | None,
  *,
  causal: bool,
  scale: float,
) -> jax.Array:
  """One head, [B, T, K]; under vmap, all heads at once.

  The kernel knows of heads, and wants them between T and K, which is where one matrix
  product for all heads leaves them. vmap left to itself would make one long batch of
  heads and rows, copied and, on several devices, gathered.
  """

  @custom_vmap
  def attend(query_BTK, key_BSK, value_BSK, mask, slope):
    slope_H = None if slope is None else slope[None]
    query, key, value = (x[:, :, None] for x in (query_BTK, key_BSK, value_BSK))
    return _kernel(query, key, value, mask, slope_H, causal, scale)[:, :, 0]

  @attend.def_vmap
  def attend_with_all_heads(_, batched, query, key, value, mask, slope_H):
    if not all(batched[:3]) or batched[3] or batched[4] is False:
      raise NotImplementedError(
        "under vmap, flash attention takes queries, keys, values and slopes with a"
        " heads axis, and a mask without"
      )
    query, key, value = (jnp.moveaxis(x, 0, 2) for x in (query, key, value))
    out_BTHK = _kernel(query, key, value, mask, slope_H, causal, scale)
    return jnp.moveaxis(out_BTHK, 2, 0), True

  return attend(query_BTK, key_BSK, value_BSK, mask, slope)


def _kernel(
  query_BTHK: jax.Array,
  key_BSHK: jax.Array,
  value_BSHK: jax.Array,
  mask: jax.Array | None,
  slope_H: jax.Array | None,
  causal: bool,
  scale: float,
) -> jax.Array:
  """cuDNN's where it can, else XLA's: [B, T, H, K].

  cuDNN's is for NVIDIA GPUs since Ampere and for 16 bits; a mask or slopes would have
  to be written down for it as [T, S], so they are left to XLA. The softmax is float32
  in both.
  """
  num_queries, num_keys = query_BTHK.shape[1], key_BSHK.shape[1]
  head_dim = query_BTHK.shape[-1]
  capability = getattr(jax.devices()[0], "compute_capability", "")
  fits = (
    capability[:1].isdigit()  # AMD's are names
    and float(capability) >= 8.0
    and query_BTHK.dtype in (jnp.bfloat16, jnp.float16)
    and head_dim % 8 == 0
    and head_dim <= 128
    and mask is None
    and slope_H is None
  )
  bias_1HTS = None
  if slope_H is not None:
    queries_T, keys_S = jnp.arange(num_queries), jnp.arange(num_keys)
    biases = jax.vmap(lambda slope: alibi_bias(slope, queries_T, keys_S)[0])
    bias_1HTS = biases(slope_H)[None]
  out_BTHK = jax.nn.dot_product_attention(
    query_BTHK,
    key_BSHK,
    value_BSHK,
    bias=bias_1HTS,
    mask=None if mask is None else mask[:, None],
    scale=scale,
    is_causal=causal,
    implementation="cudnn" if fits else "xla",
  )
  if mask is None:
    return out_BTHK
  # A row that may see nothing gives zeros, as in `SelfAttention.weights`.
  allowed_BTS = mask & causal_mask(num_queries, num_keys) if causal else mask
  return jnp.where(allowed_BTS.any(-1)[..., None, None], out_BTHK, 0)
