"""5. The next token, and the next: sample from the last logits, append, repeat.

The keys and values of tokens already read never change, so they are kept in an
explicit cache: a pytree that goes into the model and comes out longer.

Axes: B batch, T new tokens, S cache slots, H heads, K head_dim, V vocab_size.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax.errors import InputError
from gpt2_flax.self_attention import KeyValues
from gpt2_flax.transformer import GPT2, GPT2Config


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a token is chosen from logits.

  Attributes:
    temperature: divides the logits; 0 takes the most probable token (greedy).
    top_k: only the k most probable tokens; 0 for all.
    top_p: only the fewest tokens whose probabilities sum to p (Holtzman et al.,
      2020, "The Curious Case of Neural Text Degeneration", section 3.1).
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self):
    if self.temperature < 0:
      raise InputError(f"temperature is {self.temperature}: must be 0 or more")
    if self.top_k < 0:
      raise InputError(f"top_k is {self.top_k}: must be 0 (all) or more")
    if not 0 < self.top_p <= 1:
      raise InputError(f"top_p is {self.top_p}: must be above 0 and at most 1")


def empty_cache(config: GPT2Config, batch_size: int, num_slots: int) -> list[KeyValues]:
  """A cache with all slots free: one `KeyValues` [H, B, S, K] a layer."""
  shape = (config.num_heads, batch_size, num_slots, config.head_dim)
  zeros = functools.partial(jnp.zeros, shape, config.dtype)
  return [KeyValues(zeros(), zeros()) for _ in range(config.num_layers)]


def sample_token(key: jax.Array, logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
  """One token a row: int32 [B]."""
  if sampling.temperature == 0:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  logits_BV = logits_BV / sampling.temperature
  if sampling.top_k:
    kth = jax.lax.top_k(logits_BV, min(sampling.top_k, logits_BV.shape[-1]))[0][:, -1:]
    logits_BV = jnp.where(logits_BV < kth, -jnp.inf, logits_BV)
  if sampling.top_p < 1:
    descending = -jnp.sort(-logits_BV, axis=-1)
    probabilities = jax.nn.softmax(descending)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = jnp.where(before < sampling.top_p, descending, jnp.inf)
    logits_BV = jnp.where(
      logits_BV < kept.min(axis=-1, keepdims=True), -jnp.inf, logits_BV
    )
  return jax.random.categorical(key, logits_BV).astype(jnp.int32)


def _bucket(length: int, most: int) -> int:
  """The next power of two, so that a new prompt length rarely means a new compile."""
  return min(most, max(8, 1 << (length - 1).bit_length()))


@functools.partial(jax.jit, static_argnames=("model", "num_tokens", "sampling"))
def _generate(
  model: GPT2,
  params: Any,
  prompts_BT: jax.Array,
  padding_B: jax.Array,
  key: jax.Array,
  *,
  num_tokens: int,
  sampling: Sampling,
) -> jax.Array:
  """Prompts padded on the left by padding_B tokens -> int32 [B, num_tokens]."""
  batch_size, prompt_length = prompts_BT.shape
  num_slots = prompt_length + num_tokens
  is_token_B1S = (jnp.arange(num_slots)[None] >= padding_B[:, None])[:, None]

  def logits(tokens_BT, cache, start):
    slots = start + jnp.arange(tokens_BT.shape[1])[None]
    positions_BT = jnp.maximum(slots - padding_B[:, None], 0)
    logits_BTV, cache = model.apply(
      params, tokens_BT, positions_BT, is_token_B1S, cache, start
    )
    return logits_BTV[:, -1], cache

  def next_token(carry, step):
    logits_BV, cache = carry
    token_B = sample_token(jax.random.fold_in(key, step), logits_BV, sampling)
    return logits(token_B[:, None], cache, prompt_length + step), token_B

  cache = empty_cache(model.config, batch_size, num_slots)
  first = logits(prompts_BT, cache, 0)
  _, tokens = jax.lax.scan(next_token, first, jnp.arange(num_tokens))
  return tokens.T


def generate(
  model: GPT2,
  params: Any,
  prompts: Sequence[Sequence[int]],
  *,
  num_tokens: int,
  key: jax.Array | None = None,
  sampling: Sampling = Sampling(),
) -> np.ndarray:
  """Continues each prompt by num_tokens tokens.

  Args:
    prompts: token ids; they may differ in length, none may be empty.
    key: of the randomness; not needed when greedy.

  Returns:
    int32 [len(prompts), num_tokens], the new tokens alone.

  Raises:
    InputError: an empty prompt, or one that does not leave num_tokens positions of
      the model's context_length.
  """
  lengths = [len(prompt) for prompt in prompts]
  if not lengths or min(lengths) == 0:
    raise InputError("prompts: each must have at least one token")
  if num_tokens < 1:
    raise InputError(f"num_tokens is {num_tokens}: must be at least 1")
  context_length = model.config.context_length
  if max(lengths) + num_tokens > context_length:
    raise InputError(
      f"num_tokens is {num_tokens}: with a prompt of {max(lengths)} tokens,"
      f" model.context_length = {context_length} leaves"
      f" {max(0, context_length - max(lengths))}"
    )
  if key is None:
    if sampling.temperature > 0:
      raise InputError("key is None: sampling with a temperature needs one")
    key = jax.random.key(0)
  width = _bucket(max(lengths), context_length)
  padded = np.zeros((len(prompts), width), np.int32)
  for row, prompt in zip(padded, prompts, strict=True):
    row[width - len(prompt) :] = prompt
  padding = np.array([width - length for length in lengths], np.int32)
  tokens = _generate(
    model,
    params,
    jnp.asarray(padded),
    jnp.asarray(padding),
    key,
    num_tokens=num_tokens,
    sampling=sampling,
  )
  return np.asarray(tokens)
