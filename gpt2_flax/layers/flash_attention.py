"""The same attention in one kernel, for accelerators: scores are never in memory.

`SelfAttention` writes down [T, S] scores and weights for every head. A kernel that goes
through the keys block by block and keeps running sums needs neither: "FlashAttention"
(Dao et al., 2022), algorithm 1. The result is equal; the steps on the way cannot be
looked at.

Axes: B batch, T query position, S key position, H heads, K head_dim.
"""

import jax
from jax.custom_batching import custom_vmap
import jax.numpy as jnp


def flash_attention(
  query_BTK: jax.Array,
  key_BSK: jax.Array,
  value_BSK: jax.Array,
  mask: jax.Array | None,
  bias: jax.Array | None,
  *,
  causal: bool,
  scale: float,
) -> jax.Array:
  """One head, [B, T, K]; under vmap, all heads at once.

  The kernel takes a heads axis between T and K, where one matrix product for all heads
  puts it. vmap alone would make one long batch of heads and rows, at the cost of a copy
  and, on several devices, of a gather.

  Args:
    mask: bool [B or 1, T or 1, S or 1]; True lets a query see a key.
    bias: float32 [1, T, S], added to the scores.
    causal: no query sees later keys.
    scale: multiplies the scores.
  """

  @custom_vmap
  def attend(query_BTK, key_BSK, value_BSK, mask, bias):
    query, key, value = (x[:, :, None] for x in (query_BTK, key_BSK, value_BSK))
    mask, bias = (x if x is None else x[:, None] for x in (mask, bias))
    return _kernel(query, key, value, mask, bias, causal, scale)[:, :, 0]

  @attend.def_vmap
  def attend_with_all_heads(_, batched, query, key, value, mask, bias):
    if not all(batched[:3]):
      raise NotImplementedError(
        "under vmap, flash attention takes queries, keys and values with a heads axis"
      )
    query, key, value = (jnp.moveaxis(x, 0, 2) for x in (query, key, value))
    mask, bias = (
      x if x is None else jnp.moveaxis(x, 0, 1) if of_each_head else x[:, None]
      for x, of_each_head in ((mask, batched[3]), (bias, batched[4]))
    )
    out_BTHK = _kernel(query, key, value, mask, bias, causal, scale)
    return jnp.moveaxis(out_BTHK, 2, 0), True

  return attend(query_BTK, key_BSK, value_BSK, mask, bias)


def _kernel(
  query_BTHK: jax.Array,
  key_BSHK: jax.Array,
  value_BSHK: jax.Array,
  mask: jax.Array | None,
  bias: jax.Array | None,
  causal: bool,
  scale: float,
) -> jax.Array:
  """cuDNN's kernel where it fits, else XLA's: [B, T, H, K].

  cuDNN's is for NVIDIA GPUs since Ampere and for dtypes of 16 bits. It needs a mask or
  a bias as an array [T, S], so XLA's takes those. The softmax is float32 in both.

  Args:
    mask, bias: broadcastable to [B, H, T, S].
  """
  head_dim = query_BTHK.shape[-1]
  capability = getattr(jax.devices()[0], "compute_capability", "")
  fits = (
    capability[:1].isdigit()  # AMD's are names
    and float(capability) >= 8.0
    and query_BTHK.dtype in (jnp.bfloat16, jnp.float16)
    and head_dim % 8 == 0
    and head_dim <= 128
    and mask is None
    and bias is None
  )
  out_BTHK = jax.nn.dot_product_attention(
    query_BTHK,
    key_BSHK,
    value_BSHK,
    bias=bias,
    mask=mask,
    scale=scale,
    is_causal=causal,
    implementation="cudnn" if fits else "xla",
  )
  if mask is None:
    return out_BTHK
  # A row that may see nothing gives zeros, as in `SelfAttention.weights`.
  if causal:
    mask &= jnp.tri(query_BTHK.shape[1], key_BSHK.shape[1], dtype=bool)[None, None]
  sees_BTH = jnp.moveaxis(mask.any(-1), 1, 2)
  return jnp.where(sees_BTH[..., None], out_BTHK, 0)
