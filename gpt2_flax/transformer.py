"""4. The stack: embed, then read-and-think in each block, then compare with all tokens.

Axes: B batch, T position, D embed_dim, F mlp_dim, V vocab_size.
"""

import dataclasses
import functools
from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from gpt2_flax.dropout import Dropout
from gpt2_flax.errors import InputError, unknown_name
from gpt2_flax.layer_stacking import REMAT_POLICIES, rematerialised, scan_blocks
from gpt2_flax.linear import linear
from gpt2_flax.multihead_attention import MultiHeadAttention
from gpt2_flax.positional_encoding import POSITIONAL_ENCODINGS, PositionalEncoding
from gpt2_flax.self_attention import KeyValues

# "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019), table
# 2; the heads of head_dim 64 are from the released models.
PUBLISHED_SIZES = {
  "small": dict(num_layers=12, num_heads=12, embed_dim=768),
  "medium": dict(num_layers=24, num_heads=16, embed_dim=1024),
  "large": dict(num_layers=36, num_heads=20, embed_dim=1280),
  "xl": dict(num_layers=48, num_heads=25, embed_dim=1600),
}
ACTIVATIONS = {
  "gelu_tanh": functools.partial(nn.gelu, approximate=True),
  "gelu": functools.partial(nn.gelu, approximate=False),
  "relu": nn.relu,
}
ATTENTIONS = ("explicit", "flash")
DTYPES = ("float32", "bfloat16", "float16")
MOST_LAYERS = 1024  # each is built on its own
MOST = (1 << 31) - 1  # of anything else that is counted: tokens are int32


@dataclasses.dataclass(frozen=True)
class GPT2Config:
  """The shape of a model; checked when made, and never changed.

  Attributes:
    vocab_size: V, the number of different tokens.
    context_length: the most tokens the model takes at once.
    num_layers: how many blocks are stacked.
    num_heads: attention heads in a block.
    embed_dim: D, the width of the residual stream; num_heads must divide it.
    mlp_dim: F, the width inside the feed-forward; 0 means 4 * embed_dim.
    positional_encoding: "sinusoidal", "learned" (as published), "rotary", "alibi" or
      "none".
    attention: how it is computed: "explicit", step by step; or "flash", the same in one
      kernel where the device has one. It needs dropout_rate 0.
    dropout_rate: at GPT-2's three places: embeddings, attention weights, and what
      each block adds to the residual stream.
    dtype: of activations; parameters, softmax, norms' statistics and logits are
      float32 always.
    activation: of the feed-forward: "gelu_tanh" (as published), "gelu" or "relu".
    layer_norm_epsilon: added to the variance in every norm.
    tied_embeddings: the token embeddings are the output layer too (as published);
      False gives the output layer a table of its own.
    scale_attention: scores are divided by sqrt(head_dim) (as published).
    scale_attention_by_layer: and by the layer's number, counted from 1.
    feed_forward: False for attention-only blocks, for study.
    scan_layers: one layer is compiled instead of each, to train deep models: see
      `layer_stacking`. The results are the same, up to dropout's draws.
    remat: what the backward pass does not find kept, it computes again: "none" of it,
      "dots" (only products with weights are kept) or "full" (nothing is kept).
  """

  vocab_size: int = 50_257
  context_length: int = 1024
  num_layers: int = 12
  num_heads: int = 12
  embed_dim: int = 768
  mlp_dim: int = 0
  positional_encoding: str = "sinusoidal"
  attention: str = "explicit"
  dropout_rate: float = 0.0
  dtype: str = "float32"
  activation: str = "gelu_tanh"
  layer_norm_epsilon: float = 1e-5
  tied_embeddings: bool = True
  scale_attention: bool = True
  scale_attention_by_layer: bool = False
  feed_forward: bool = True
  scan_layers: bool = False
  remat: str = "none"

  def __post_init__(self):
    for name in (
      "vocab_size",
      "context_length",
      "num_layers",
      "num_heads",
      "embed_dim",
    ):
      value, most = getattr(self, name), MOST_LAYERS if name == "num_layers" else MOST
      if not 1 <= value <= most:
        allowed = "at least 1" if value < 1 else f"at most {most}"
        raise InputError(f"model.{name} is {value}: must be {allowed}")
    if self.embed_dim % self.num_heads:
      raise InputError(
        f"model.embed_dim is {self.embed_dim}: must be divisible by"
        f" model.num_heads, which is {self.num_heads}"
      )
    if not 0 <= self.mlp_dim <= MOST:
      raise InputError(
        f"model.mlp_dim is {self.mlp_dim}: must be 0 (4 * embed_dim) to {MOST}"
      )
    if not 0.0 <= self.dropout_rate < 1.0:
      raise InputError(f"model.dropout_rate is {self.dropout_rate}: must be in [0, 1)")
    if self.positional_encoding not in POSITIONAL_ENCODINGS:
      raise unknown_name(
        "model.positional_encoding", self.positional_encoding, POSITIONAL_ENCODINGS
      )
    if self.positional_encoding == "rotary" and self.head_dim % 2:
      raise InputError(
        f"model.embed_dim / model.num_heads is {self.head_dim}: must be even for"
        " model.positional_encoding=rotary"
      )
    if self.attention not in ATTENTIONS:
      raise unknown_name("model.attention", self.attention, ATTENTIONS)
    if self.attention == "flash" and self.dropout_rate:
      raise InputError(
        f"model.dropout_rate is {self.dropout_rate}: must be 0 for"
        " model.attention=flash, which has no attention weights to drop"
      )
    if self.dtype not in DTYPES:
      raise unknown_name("model.dtype", self.dtype, DTYPES)
    if self.activation not in ACTIVATIONS:
      raise unknown_name("model.activation", self.activation, ACTIVATIONS)
    if not 0.0 < self.layer_norm_epsilon < 1.0:
      raise InputError(
        f"model.layer_norm_epsilon is {self.layer_norm_epsilon}: must be in (0, 1)"
      )
    if self.scan_layers and self.scale_attention_by_layer:
      raise InputError(
        "model.scan_layers is True: must be False where"
        " model.scale_attention_by_layer is True, since no two layers are alike"
      )
    if self.remat not in REMAT_POLICIES:
      raise unknown_name("model.remat", self.remat, REMAT_POLICIES)

  @classmethod
  def published(cls, size: str, **changes) -> "GPT2Config":
    """GPT-2 as OpenAI released it: "small", "medium", "large" or "xl"."""
    if size not in PUBLISHED_SIZES:
      raise unknown_name("GPT-2 size", size, PUBLISHED_SIZES)
    published: dict[str, Any] = {**PUBLISHED_SIZES[size]}
    published["positional_encoding"] = "learned"
    return cls(**(published | changes))

  @property
  def head_dim(self) -> int:
    return self.embed_dim // self.num_heads

  @property
  def plain(self) -> "GPT2Config":
    """The same model as it is saved: its layers apart, and nothing computed twice."""
    return dataclasses.replace(self, scan_layers=False, remat="none")


def _layer_norm(config: GPT2Config, name: str | None = None) -> nn.LayerNorm:
  def partitioned(init):
    return nn.with_logical_partitioning(init, ("embed",))

  return nn.LayerNorm(
    epsilon=config.layer_norm_epsilon,
    dtype=config.dtype,
    use_fast_variance=False,  # E[x^2] - E[x]^2 cancels on GPT-2's large activations
    scale_init=partitioned(nn.initializers.ones_init()),
    bias_init=partitioned(nn.initializers.zeros_init()),
    name=name,
  )


def _residual_init(config: GPT2Config) -> nn.initializers.Initializer:
  """Each addition to the residual stream, two a block, starts smaller, so that their
  sum does not grow with depth (Radford et al., 2019, section 2.3)."""
  num_additions = config.num_layers * (2 if config.feed_forward else 1)
  return nn.initializers.normal(0.02 / num_additions**0.5)


class TokenEmbedding(nn.Embed):
  """A vector for each token.

  Devices that share the table by its width (see `training/mesh.py`) bring it together
  where it is used, in place of the whole batch, and in the dtype that it is used in.
  """

  def setup(self):
    super().setup()
    embedding_VD = self.embedding.astype(self.dtype)
    # Still in parts: else the compiler brings together float32, and then converts it.
    embedding_VD = nn.with_logical_constraint(embedding_VD, ("vocab", "embed"))
    self.embedding = nn.with_logical_constraint(embedding_VD, ("vocab", None))


class FeedForward(nn.Module):
  """What a token makes of what it has read: D -> F -> D, position by position.

  GPT-2's activation is GELU in its tanh form (Hendrycks & Gimpel, 2016, section 2).
  """

  config: GPT2Config

  def setup(self):
    config = self.config
    mlp_dim = config.mlp_dim or 4 * config.embed_dim
    init = nn.initializers.normal(0.02)
    self.expand = linear(mlp_dim, ("embed", "mlp"), init, config.dtype)
    self.contract = linear(
      config.embed_dim, ("mlp", "embed"), _residual_init(config), config.dtype
    )

  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    return self.contract(self.hidden(x_BTD))

  def hidden(self, x_BTD: jax.Array) -> jax.Array:
    """[B, T, D] -> [B, T, F], after the activation."""
    return ACTIVATIONS[self.config.activation](self.expand(x_BTD))


class Block(nn.Module):
  """Attention reads from other positions, the feed-forward works on each alone.

  Both add to the residual stream what they make of its normalised copy
  (pre-LayerNorm: Radford et al., 2019, section 2.3).
  """

  config: GPT2Config
  layer: int = 0

  def setup(self):
    config = self.config
    temperature = 1.0 if config.scale_attention else config.head_dim**-0.5
    if config.scale_attention_by_layer:
      temperature *= self.layer + 1
    self.attention_norm = _layer_norm(config)
    self.attention = MultiHeadAttention(
      num_heads=config.num_heads,
      head_dim=config.head_dim,
      dropout_rate=config.dropout_rate,
      dtype=config.dtype,
      output_init=_residual_init(config),
      temperature=temperature,
      positional_encoding=config.positional_encoding,
      flash=config.attention == "flash",
    )
    if config.feed_forward:
      self.feed_forward_norm = _layer_norm(config)
      self.feed_forward = FeedForward(config)
    self.dropout = Dropout(config.dropout_rate)

  def __call__(
    self,
    x_BTD: jax.Array,
    mask: jax.Array | None = None,
    cache: KeyValues | None = None,
    start: jax.Array | int = 0,
  ) -> Any:
    """[B, T, D] -> [B, T, D]; arguments and returns as in `SelfAttention`."""
    # Where devices share a batch, each keeps its rows, and weights come to it.
    x_BTD = nn.with_logical_constraint(x_BTD, ("batch", None, None))
    attended_BTD = self.attention(self.attention_norm(x_BTD), mask, cache, start)
    if cache is not None:
      attended_BTD, cache = attended_BTD
    x_BTD += self.dropout(attended_BTD)
    if self.config.feed_forward:
      x_BTD += self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))
    return x_BTD if cache is None else (x_BTD, cache)


class GPT2(nn.Module):
  """A decoder-only Transformer: tokens in, next-token logits at each position out.

  `logits_BTV = GPT2(config).apply(params, tokens_BT)`, with
  `params = GPT2(config).init(key, tokens_BT)`. Pass `rngs={"dropout": key}` to
  train with dropout. Source: Radford et al. (2019), section 2.3; the embeddings
  serve as the output layer too (Press & Wolf, 2017), unless config unties them.
  """

  config: GPT2Config

  def setup(self):
    config = self.config

    def embedding():
      return TokenEmbedding(
        config.vocab_size,
        config.embed_dim,
        dtype=config.dtype,
        embedding_init=nn.with_logical_partitioning(
          nn.initializers.normal(0.02), ("vocab", "embed")
        ),
      )

    self.token_embedding = embedding()
    self.output_embedding = (
      self.token_embedding if config.tied_embeddings else embedding()
    )
    self.positional_encoding = PositionalEncoding(
      config.positional_encoding, config.context_length
    )
    self.dropout = Dropout(config.dropout_rate)
    block = rematerialised(Block, config.remat, config.scan_layers)
    self.blocks: Any = (
      block(config)
      if config.scan_layers
      else [block(config, layer) for layer in range(config.num_layers)]
    )
    self.final_norm = _layer_norm(config)

  def __call__(
    self,
    tokens_BT: jax.Array,
    positions: jax.Array | None = None,
    mask: jax.Array | None = None,
    cache: list[KeyValues] | None = None,
    start: jax.Array | int = 0,
  ) -> Any:
    """Next-token logits.

    Args:
      tokens_BT: int [B, T], T at most context_length.
      positions: int [B, T] or [1, T]; None counts from `start`.
      mask: bool, broadcastable to [B, T, S]: see `SelfAttention`.
      cache: one `KeyValues` a layer, each [H, B, S, K] (`generation.empty_cache`).
      start: int scalar, the cache's slot for the first of these tokens.

    Returns:
      float32 [B, T, V], or that and the extended cache where one was given.

    Raises:
      InputError: T exceeds context_length, or a cache meets scan_layers.
    """
    hidden_BTD = self.hidden(tokens_BT, positions, mask, cache, start)
    if cache is not None:
      hidden_BTD, cache = hidden_BTD
    logits_BTV = self.unembed(hidden_BTD)
    return logits_BTV if cache is None else (logits_BTV, cache)

  def hidden(self, tokens_BT, positions=None, mask=None, cache=None, start=0) -> Any:
    """As `__call__`, up to the final norm: [B, T, D] in place of the logits."""
    chex.assert_rank(tokens_BT, 2)
    if tokens_BT.shape[1] > self.config.context_length:
      raise InputError(
        f"{tokens_BT.shape[1]} tokens: model.context_length allows at most"
        f" {self.config.context_length}"
      )
    if positions is None:
      positions = start + jnp.arange(tokens_BT.shape[1])[None]
    x_BTD = self.embed(tokens_BT, positions)
    if self.config.scan_layers:
      if cache is not None:
        raise InputError(
          "model.scan_layers is True: must be False with a cache (`GPT2Config.plain`,"
          " `layer_stacking.unstack_layers`)"
        )
      x_BTD = scan_blocks(self.blocks, self.config.num_layers, x_BTD, mask)
      return self.final_norm(x_BTD)
    extended = []
    for layer, block in enumerate(self.blocks):
      if cache is None:
        x_BTD = block(x_BTD, mask)
      else:
        x_BTD, layer_cache = block(x_BTD, mask, cache[layer], start)
        extended.append(layer_cache)
    x_BTD = self.final_norm(x_BTD)
    return x_BTD if cache is None else (x_BTD, extended)

  def embed(self, tokens_BT: jax.Array, positions: jax.Array) -> jax.Array:
    """Token embeddings plus positions: int [B, T] -> [B, T, D]."""
    x_BTD = self.token_embedding(tokens_BT)
    if self.config.positional_encoding == "sinusoidal":
      # The waves' amplitude is 1, the embeddings' some 0.02: without this, tokens
      # would be lost among positions (Vaswani et al., 2017, section 3.4).
      x_BTD *= self.config.embed_dim**0.5
    return self.dropout(self.positional_encoding(x_BTD, positions))

  def unembed(self, x_BTD: jax.Array) -> jax.Array:
    """How well each token's embedding fits: [B, T, D] -> float32 [B, T, V]."""
    embedding_VD = self.output_embedding.embedding.astype(x_BTD.dtype)
    return jnp.einsum(
      "BTD,VD->BTV", x_BTD, embedding_VD, preferred_element_type=jnp.float32
    )


def num_params(params: Any) -> int:
  """The number of trained values in a tree of parameters."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
