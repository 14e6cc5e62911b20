"""GPT-2 taken apart: a decoder-only Transformer from its parts, in JAX and Flax."""

from gpt2_flax.errors import InputError
from gpt2_flax.multihead_attention import MultiHeadAttention
from gpt2_flax.positional_encoding import (
  PositionalEncoding,
  sinusoidal_positional_encoding,
)
from gpt2_flax.self_attention import SelfAttention
from gpt2_flax.transformer import GPT2, GPT2Config

__version__ = "0.1.0"

__all__ = [
  "GPT2",
  "GPT2Config",
  "InputError",
  "MultiHeadAttention",
  "PositionalEncoding",
  "SelfAttention",
  "sinusoidal_positional_encoding",
]
