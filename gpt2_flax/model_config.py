"""The shape of a model: what can be set, and what fits together."""

import dataclasses
import functools
from typing import Any

from flax import linen as nn

from gpt2_flax.errors import InputError, unknown_name
from gpt2_flax.layers.layer_stacking import REMAT_POLICIES
from gpt2_flax.positional_encoding import POSITIONAL_ENCODINGS
from gpt2_flax.self_attention import HEADS

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
DTYPES = ("float32", "bfloat16", "float16")
MOST_LAYERS = 1024  # each is built on its own
MOST = (1 << 31) - 1  # of everything else that is counted, since tokens are int32


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
    attention: the kind of the heads, a name of `HEADS`: "explicit", step by step;
      "flash", the same in one kernel where the device has one, for dropout_rate 0; or
      yours.
    causal: a token sees itself and earlier ones only. False is for study: every token
      sees all, and nothing can be generated.
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
    scan_layers: one layer is compiled for all of them, to train deep models: see
      `layer_stacking`. The results are the same, up to dropout's draws.
    remat: what the backward pass computes a second time, to save memory: "none";
      "scores", those of attention and what follows from them; "dots", all but the
      products with weights; or "full", everything.
  """

  vocab_size: int = 50_257
  context_length: int = 1024
  num_layers: int = 12
  num_heads: int = 12
  embed_dim: int = 768
  mlp_dim: int = 0
  positional_encoding: str = "sinusoidal"
  attention: str = "explicit"
  causal: bool = True
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
    if self.attention not in HEADS:
      raise unknown_name("model.attention", self.attention, HEADS)
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
    """The same model as it is saved: with layers apart and no rematerialisation."""
    return dataclasses.replace(self, scan_layers=False, remat="none")
