"""4. The stack: embed, then read and think in each block, then compare with all tokens.

Axes: B batch, T position, D embed_dim, F mlp_dim, V vocab_size.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax.errors import InputError
from gpt2_flax.layers.dropout import Dropout
from gpt2_flax.layers.key_values import KeyValues
from gpt2_flax.layers.layer_norm import layer_norm
from gpt2_flax.layers.layer_stacking import forgetful, rematerialised, scan_blocks
from gpt2_flax.layers.linear import linear
from gpt2_flax.layers.token_embedding import TokenEmbedding
from gpt2_flax.model_config import ACTIVATIONS, GPT2Config
from gpt2_flax.multihead_attention import MultiHeadAttention
from gpt2_flax.positional_encoding import PositionalEncoding
from gpt2_flax.self_attention import HEADS, SelfAttention


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

  Attributes:
    config: of the whole model.
    layer: which block of the stack this is, counted from 0.
    head, mlp, norm: as in `GPT2`.
  """

  config: GPT2Config
  layer: int = 0
  head: type[SelfAttention] | None = None
  mlp: Callable[[GPT2Config], nn.Module] = FeedForward
  norm: Callable[..., nn.Module] = layer_norm

  def setup(self):
    config = self.config
    temperature = 1.0 if config.scale_attention else config.head_dim**-0.5
    if config.scale_attention_by_layer:
      temperature *= self.layer + 1
    head = self.head or HEADS[config.attention]
    if config.remat == "scores":
      head = forgetful(head, config.scan_layers)
    self.attention_norm = self.norm(config.layer_norm_epsilon, config.dtype)
    self.attention = MultiHeadAttention(
      num_heads=config.num_heads,
      head_dim=config.head_dim,
      causal=config.causal,
      dropout_rate=config.dropout_rate,
      dtype=config.dtype,
      output_init=_residual_init(config),
      temperature=temperature,
      positional_encoding=config.positional_encoding,
      head=head,
    )
    if config.feed_forward:
      self.feed_forward_norm = self.norm(config.layer_norm_epsilon, config.dtype)
      self.feed_forward = self.mlp(config)
    self.dropout = Dropout(config.dropout_rate)

  def __call__(
    self,
    x_BTD: jax.Array,
    mask: jax.Array | None = None,
    cache: KeyValues | None = None,
    start: jax.Array | int = 0,
  ) -> tuple[jax.Array, KeyValues | None]:
    """The residual stream after this block, [B, T, D], and the extended cache."""
    x_BTD, cache = self.read(x_BTD, mask, cache, start)
    return self.think(x_BTD), cache

  def receive(self, x_BTD: jax.Array) -> jax.Array:
    """The residual stream as it comes in. Where devices share a batch, each keeps its
    own rows, and the weights are sent to it."""
    return nn.with_logical_constraint(x_BTD, ("batch", None, None))

  def read(
    self,
    x_BTD: jax.Array,
    mask: jax.Array | None = None,
    cache: KeyValues | None = None,
    start: jax.Array | int = 0,
  ) -> tuple[jax.Array, KeyValues | None]:
    """Adds what attention takes from other positions: see `SelfAttention.attend`."""
    x_BTD = self.receive(x_BTD)
    normed_BTD = self.attention_norm(x_BTD)
    attended_BTD, cache = self.attention.attend(normed_BTD, mask, cache, start)
    return x_BTD + self.dropout(attended_BTD), cache

  def think(self, x_BTD: jax.Array) -> jax.Array:
    """Adds what the feed-forward makes of each position: [B, T, D]."""
    if not self.config.feed_forward:
      return x_BTD
    return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))


class GPT2(nn.Module):
  """A decoder-only Transformer: tokens in, next-token logits at each position out.

  `logits_BTV = GPT2(config).apply(params, tokens_BT)`, with
  `params = GPT2(config).init(key, tokens_BT)`. Pass `rngs={"dropout": key}` to
  train with dropout. Source: Radford et al. (2019), section 2.3; the embeddings
  serve as the output layer too (Press & Wolf, 2017), unless config unties them.

  Attributes:
    config: the shape of the model.
    head: the class of its heads; None for the one that config.attention names.
    mlp: what makes the feed-forward of a block from the config.
    norm: what makes a norm from an epsilon and a dtype.
  """

  config: GPT2Config
  head: type[SelfAttention] | None = None
  mlp: Callable[[GPT2Config], nn.Module] = FeedForward
  norm: Callable[..., nn.Module] = layer_norm

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
    parts = dict(head=self.head, mlp=self.mlp, norm=self.norm)
    self.blocks: Any = (
      block(config, **parts)
      if config.scan_layers
      else [block(config, layer, **parts) for layer in range(config.num_layers)]
    )
    self.final_norm = self.norm(config.layer_norm_epsilon, config.dtype)

  def __call__(
    self,
    tokens_BT: jax.Array,
    positions: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """Next-token logits, float32 [B, T, V].

    Args:
      tokens_BT: int [B, T], T at most context_length. Each must be 0 to
        vocab_size - 1. Under jit this is not checked: a token that is too large gives
        NaN in its text, and a negative one counts from the end of the vocabulary.
      positions: int [B, T] or [1, T]; None counts from 0.
      mask: bool, broadcastable to [B, T, S], or [B, H, T, S] with one for each head:
        see `SelfAttention`.

    Raises:
      InputError: T exceeds context_length, a token is not in the vocabulary, or the
        mask is not bool or does not fit.
    """
    return self.unembed(self.hidden(tokens_BT, positions, mask))

  def hidden(
    self,
    tokens_BT: jax.Array,
    positions: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """As `__call__`, up to the final norm: [B, T, D] in place of the logits."""
    return self.extend(tokens_BT, positions, mask)[0]

  def extend(
    self,
    tokens_BT: jax.Array,
    positions: jax.Array | None = None,
    mask: jax.Array | None = None,
    cache: Sequence[KeyValues] | None = None,
    start: jax.Array | int = 0,
  ) -> tuple[jax.Array, list[KeyValues] | None]:
    """As `hidden`, for tokens that follow those in a cache.

    Args:
      tokens_BT: as in `__call__`.
      positions: as in `__call__`; None counts from `start`.
      mask: as in `__call__`; S are the slots of the cache.
      cache: one `KeyValues` a layer, each [H, B, S, K] (`generation.empty_cache`).
      start: int scalar, the slot in the cache for the first of these tokens.

    Returns:
      [B, T, D], and the extended cache; None where none was given.

    Raises:
      InputError: as `__call__`, or there is a cache and scan_layers is True.
    """
    config = self.config
    self._check_tokens(tokens_BT)
    if positions is None:
      positions = start + jnp.arange(tokens_BT.shape[1])[None]
    x_BTD = self.embed(tokens_BT, positions)
    if config.scan_layers:
      if cache is not None:
        raise InputError(
          "model.scan_layers is True: must be False with a cache (`GPT2Config.plain`,"
          " `layer_stacking.unstack_layers`)"
        )
      x_BTD = scan_blocks(self.blocks, config.num_layers, x_BTD, mask)
      return self.final_norm(x_BTD), None
    extended = []
    for block, kept in zip(
      self.blocks, cache or [None] * config.num_layers, strict=True
    ):
      x_BTD, kept = block(x_BTD, mask, kept, start)
      extended.append(kept)
    return self.final_norm(x_BTD), None if cache is None else extended

  def embed(self, tokens_BT: jax.Array, positions: jax.Array) -> jax.Array:
    """Token embeddings plus positions: int [B, T] -> [B, T, D]."""
    x_BTD = self.positional_encoding(self.embed_tokens(tokens_BT), positions)
    return self.dropout(x_BTD)

  def embed_tokens(self, tokens_BT: jax.Array) -> jax.Array:
    """What positions are added to: int [B, T] -> [B, T, D]."""
    x_BTD = self.token_embedding(tokens_BT)
    if self.config.positional_encoding == "sinusoidal":
      # The waves' amplitude is 1, the embeddings' some 0.02: without this, tokens
      # would be lost among positions (Vaswani et al., 2017, section 3.4).
      x_BTD *= self.config.embed_dim**0.5
    return x_BTD

  def unembed(self, x_BTD: jax.Array) -> jax.Array:
    """How well each token's embedding fits: [B, T, D] -> float32 [B, T, V]."""
    embedding_VD = self.output_embedding.embedding.astype(x_BTD.dtype)
    return jnp.einsum(
      "BTD,VD->BTV", x_BTD, embedding_VD, preferred_element_type=jnp.float32
    )

  def _check_tokens(self, tokens_BT: jax.Array) -> None:
    chex.assert_rank(tokens_BT, 2)
    config = self.config
    if tokens_BT.shape[1] > config.context_length:
      raise InputError(
        f"{tokens_BT.shape[1]} tokens: model.context_length allows at most"
        f" {config.context_length}"
      )
    if isinstance(tokens_BT, jax.core.Tracer) or tokens_BT.size == 0:
      return  # values are not known
    values = np.asarray(tokens_BT)
    for token in (values.min(), values.max()):
      if not 0 <= token < config.vocab_size:
        raise InputError(
          f"token id is {token}: must be 0 to {config.vocab_size - 1}, by"
          " model.vocab_size"
        )


def _residual_init(config: GPT2Config) -> nn.initializers.Initializer:
  """Each addition to the residual stream, two a block, starts smaller, so that their
  sum does not grow with depth (Radford et al., 2019, section 2.3)."""
  num_additions = config.num_layers * (2 if config.feed_forward else 1)
  return nn.initializers.normal(0.02 / num_additions**0.5)


def init_params(model: GPT2, key: jax.Array) -> Any:
  """Random parameters, with the names of their axes: what `model.init` gives.

  It is traced once for each model.
  """
  return _init(model)(key)


def abstract_params(model: GPT2) -> Any:
  """Shape, dtype and axis names of `init_params`, with nothing computed."""
  return jax.eval_shape(_init(model), jax.eval_shape(lambda: jax.random.key(0)))


@functools.lru_cache(maxsize=64)
def _traced(model: Any) -> Any:
  tokens_BT = jnp.zeros((1, 1), jnp.int32)  # which ones, no parameter depends on
  return jax.jit(lambda key: model.init(key, tokens_BT), inline=True)


_init: Any = _traced  # a module is hashable, whatever its type says


def num_params(params: Any) -> int:
  """The number of trained values in a tree of parameters."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
