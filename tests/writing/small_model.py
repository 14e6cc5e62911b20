"""A small model whose next tokens differ from text to text, and letters for it."""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from gpt2_flax import GPT2, GPT2Config
from gpt2_flax.tokenizer import CharTokenizer

LETTERS = CharTokenizer("".join(map(chr, range(128))))  # ids are code points


@functools.cache
def model_and_params(context_length: int) -> tuple[GPT2, Any]:
  config = GPT2Config(
    vocab_size=LETTERS.vocab_size,
    context_length=context_length,
    num_layers=1,
    num_heads=2,
    embed_dim=16,
    positional_encoding="learned",
  )
  model = GPT2(config)
  key = jax.random.key(1, impl="unsafe_rbg")
  params = nn.unbox(jax.jit(model.init)(key, jnp.zeros((1, 1), int)))
  return model, jax.tree.map(lambda x: x if x.ndim == 1 else 20 * x, params)
