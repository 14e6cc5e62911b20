"""3. Many heads: the very same head, several times at once, each with its own weights.

Axes: B batch, T query position, H heads, K head_dim, D embed_dim.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from gpt2_flax.errors import unknown_name
from gpt2_flax.layers.key_values import KeyValues
from gpt2_flax.layers.linear import linear
from gpt2_flax.layers.masks import checked_mask
from gpt2_flax.positional_encoding import alibi_slopes, POSITIONAL_ENCODINGS
from gpt2_flax.self_attention import SelfAttention


class MultiHeadAttention(nn.Module):
  """`SelfAttention` under `nn.vmap`, concatenated and projected.

  Concat(head_1, ..., head_H) W^O: "Attention Is All You Need" (Vaswani et al.,
  2017), section 3.2.2. All heads read the same input (`in_axes=None`), so XLA
  computes their projections as one matrix product; parameters carry a leading
  heads axis, `heads/query/kernel: [H, D, K]`.

  Attributes:
    num_heads: H.
    head_dim: K, of each head.
    causal, dropout_rate, dtype, kernel_init, temperature: see `SelfAttention`.
    output_init: of the output projection; GPT-2 shrinks it with depth.
    positional_encoding: "rotary" and "alibi" act in the heads; all others do not.
    head: the class of the heads: `SelfAttention`, or a subclass of yours.
  """

  num_heads: int
  head_dim: int
  causal: bool = True
  dropout_rate: float = 0.0
  dtype: Any = None
  kernel_init: nn.initializers.Initializer = nn.initializers.normal(0.02)
  output_init: nn.initializers.Initializer = nn.initializers.normal(0.02)
  temperature: float = 1.0
  positional_encoding: str = "none"
  head: type[SelfAttention] = SelfAttention

  def __call__(self, x_BTD: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """What each token takes from those it sees: [B, T, D] -> [B, T, D].

    Args:
      x_BTD: the tokens, as vectors.
      mask: as in `SelfAttention`, the same for all heads; or [B, H, T, S], one a head.
    """
    return self.attend(x_BTD, mask)[0]

  @nn.compact
  def attend(
    self,
    x_BTD: jax.Array,
    mask: jax.Array | None = None,
    cache: KeyValues | None = None,
    start: jax.Array | int = 0,
  ) -> tuple[jax.Array, KeyValues | None]:
    """As `__call__`, and over the tokens in a cache too: see `SelfAttention.attend`.

    The cache has a leading heads axis.
    """
    if self.positional_encoding not in POSITIONAL_ENCODINGS:
      raise unknown_name(
        "positional_encoding", self.positional_encoding, POSITIONAL_ENCODINGS
      )
    mask_of_each_head = mask is not None and jnp.ndim(mask) > 3
    if mask_of_each_head:
      mask = self._mask_HBTS(mask, x_BTD, cache)
    heads = nn.vmap(
      self.head,
      methods=["attend"],
      # x and start are shared, and a mask that is the same for all
      in_axes=(None, 0 if mask_of_each_head else None, 0, None, 0),
      out_axes=0,
      axis_size=self.num_heads,
      variable_axes={True: 0},  # everything a head holds has a heads axis
      split_rngs={True: True},  # and every head draws its own randomness
      metadata_params={nn.PARTITION_NAME: "heads"},
    )(
      head_dim=self.head_dim,
      causal=self.causal,
      dropout_rate=self.dropout_rate,
      dtype=self.dtype,
      kernel_init=self.kernel_init,
      temperature=self.temperature,
      rotary=self.positional_encoding == "rotary",
      name="heads",
    )
    alibi = self.positional_encoding == "alibi"
    slopes_H = alibi_slopes(self.num_heads) if alibi else None
    out_HBTK, cache = heads.attend(x_BTD, mask, cache, start, slopes_H)
    axes = ("heads", "embed")
    output = linear(x_BTD.shape[-1], axes, self.output_init, self.dtype, name="output")
    return output(self.concatenate(out_HBTK)), cache

  def concatenate(self, out_HBTK: jax.Array) -> jax.Array:
    """Heads side by side, in order: [H, B, T, K] -> [B, T, H * K]."""
    out_BTHK = jnp.moveaxis(out_HBTK, 0, 2)
    return out_BTHK.reshape(*out_BTHK.shape[:2], -1)

  def _mask_HBTS(
    self, mask: jax.typing.ArrayLike, x_BTD: jax.Array, cache: KeyValues | None
  ) -> jax.Array:
    batch_size, length, _ = x_BTD.shape
    num_keys = length if cache is None else cache.key.shape[2]
    mask = checked_mask(mask, (batch_size, self.num_heads, length, num_keys))
    mask_HBTS = jnp.moveaxis(mask, 1, 0)
    return jnp.broadcast_to(mask_HBTS, (self.num_heads, *mask_HBTS.shape[1:]))
