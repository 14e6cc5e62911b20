"""5. The next token, and the next: sample from the last logits, append, repeat.

The keys and values of tokens already read never change, so they are kept in an
explicit cache: a pytree that goes into the model and comes out longer.

Axes: B batch, T new tokens, S cache slots, H heads, K head_dim, V vocab_size.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax.errors import InputError, unknown_name
from gpt2_flax.layers.key_values import KeyValues
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.transformer import GPT2

OVERFLOWS = ("stop", "slide")
CHUNK = 16  # tokens made on the device before the host looks at them


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a token is chosen from logits; applied in this order.

  Attributes:
    repetition_penalty: logits of tokens that are there already are divided by it
      where positive, else multiplied (Keskar et al., 2019, "CTRL", section 4.1).
    temperature: divides the logits; 0 takes the most probable token (greedy).
    top_k: only the k most probable tokens; 0 for all.
    top_p: only the fewest tokens whose probabilities sum to p (Holtzman et al.,
      2020, "The Curious Case of Neural Text Degeneration", section 3.1).
    min_p: only tokens at least min_p times as probable as the most probable one
      (Nguyen et al., 2024, "Turning Up the Heat", section 3).
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0

  def __post_init__(self):
    for name, holds, allowed in (
      ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
      ("top_k", self.top_k >= 0, "0 (all) or more"),
      ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
      ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
      ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "above 0"),
    ):
      if not holds:
        raise InputError(f"{name} is {getattr(self, name)}: must be {allowed}")


class Decoding(NamedTuple):
  """A batch of texts in the making.

  Attributes:
    cache: one `KeyValues` [H, B, S, K] a layer.
    slot: int scalar, the first free slot.
    padding_B: how many slots at the beginning hold no token.
    logits_BV: for the token that goes into `slot`.
    seen_BV: bool, the tokens that are there already.
    done_B: bool, rows that have ended.
  """

  cache: list[KeyValues]
  slot: jax.Array
  padding_B: jax.Array
  logits_BV: jax.Array
  seen_BV: jax.Array
  done_B: jax.Array


def empty_cache(config: GPT2Config, batch_size: int, num_slots: int) -> list[KeyValues]:
  """A cache with all slots free: one `KeyValues` [H, B, S, K] a layer."""
  shape = (config.num_heads, batch_size, num_slots, config.head_dim)
  return [
    KeyValues(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))
    for _ in range(config.num_layers)
  ]


def sample_token(
  key: jax.Array,
  logits_BV: jax.Array,
  sampling: Sampling,
  seen_BV: jax.Array | None = None,
) -> jax.Array:
  """One token a row: int32 [B]."""
  if sampling.repetition_penalty != 1 and seen_BV is not None:
    penalty = sampling.repetition_penalty
    penalised_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    logits_BV = jnp.where(seen_BV, penalised_BV, logits_BV)
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
    least = kept.min(axis=-1, keepdims=True)
    logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
  if sampling.min_p:
    least = logits_BV.max(axis=-1, keepdims=True) + jnp.log(sampling.min_p)
    logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
  return jax.random.categorical(key, logits_BV).astype(jnp.int32)


def _next_logits(
  model: GPT2,
  params: Any,
  tokens_BT: jax.Array,
  cache: list[KeyValues],
  slot: jax.typing.ArrayLike,
  padding_B: jax.Array,
) -> tuple[jax.Array, list[KeyValues]]:
  """Reads tokens into the slots from `slot` on; logits after the last, [B, V]."""
  num_slots = cache[0].key.shape[2]
  is_token_B1S = (jnp.arange(num_slots)[None] >= padding_B[:, None])[:, None]
  slots = slot + jnp.arange(tokens_BT.shape[1])[None]
  positions_BT = jnp.maximum(slots - padding_B[:, None], 0)
  extended: Any = model.apply(
    params, tokens_BT, positions_BT, is_token_B1S, cache, slot, method="extend"
  )
  hidden_BTD, cache = extended
  logits_BTV: Any = model.apply(params, hidden_BTD[:, -1:], method="unembed")
  return logits_BTV[:, 0], cache


@functools.partial(jax.jit, static_argnames=("model", "num_slots"))
def prefill(
  model: GPT2,
  params: Any,
  prompts_BT: jax.Array,
  padding_B: jax.Array,
  *,
  num_slots: int,
) -> Decoding:
  """Reads prompts, of any length, in one go.

  Args:
    prompts_BT: int [B, T], each ending at the right, T at most num_slots.
    padding_B: how many tokens at the left of each are padding.
    num_slots: S, room for the prompts and what will follow.
  """
  batch_size, length = prompts_BT.shape
  cache = empty_cache(model.config, batch_size, num_slots)
  logits_BV, cache = _next_logits(model, params, prompts_BT, cache, 0, padding_B)
  is_token_BT = jnp.arange(length)[None] >= padding_B[:, None]
  row_B1 = jnp.arange(batch_size)[:, None]
  seen_BV = jnp.zeros(logits_BV.shape, bool).at[row_B1, prompts_BT].max(is_token_BT)
  done_B = jnp.zeros(batch_size, bool)
  return Decoding(cache, jnp.int32(length), padding_B, logits_BV, seen_BV, done_B)


def swap_heads(params: Any) -> Any:
  """The heads' kernels [H, D, K] <-> [D, H, K], which is one matrix of all heads.

  XLA multiplies a token with all heads at once. For that it would rearrange the
  kernels at every token; swapped before, they stay as they are.
  """

  def swap(path: tuple, leaf: jax.Array) -> jax.Array:
    names = {getattr(key, "key", None) for key in path}
    return leaf.swapaxes(0, 1) if {"heads", "kernel"} <= names else leaf

  return jax.tree_util.tree_map_with_path(swap, params)


@functools.partial(
  jax.jit, static_argnames=("model", "sampling", "stop_ids"), donate_argnames="state"
)
def decode(
  model: GPT2,
  swapped_params: Any,
  state: Decoding,
  key: jax.Array,
  num_made: jax.typing.ArrayLike,
  num_tokens: jax.typing.ArrayLike,
  *,
  sampling: Sampling,
  stop_ids: tuple[int, ...] = (),
) -> tuple[Decoding, jax.Array]:
  """Appends up to CHUNK tokens in one loop on the device.

  Args:
    swapped_params: as `swap_heads` gives them.
    num_made: how many were made before; the randomness of a token depends on its
      number alone, not on how many are made in one call.
    num_tokens: how many to make now, at most CHUNK; fewer are made when all rows end.
    stop_ids: tokens that end a row.

  Returns:
    The state, and int32 [B, CHUNK]; -1 after a row has ended.
  """

  def unfinished(carry: tuple) -> jax.Array:
    state, _, step = carry
    return (step < num_tokens) & ~state.done_B.all()

  def append(carry: tuple) -> tuple:
    state, out, step = carry
    token_key = jax.random.fold_in(key, num_made + step)
    token_B = sample_token(token_key, state.logits_BV, sampling, state.seen_BV)
    out = out.at[:, step].set(jnp.where(state.done_B, -1, token_B))
    # The barrier keeps the compiler from moving the swap back out of the loop.
    params = swap_heads(jax.lax.optimization_barrier(swapped_params))
    logits_BV, cache = _next_logits(
      model, params, token_B[:, None], state.cache, state.slot, state.padding_B
    )
    state = Decoding(
      cache=cache,
      slot=state.slot + 1,
      padding_B=state.padding_B,
      logits_BV=logits_BV,
      seen_BV=state.seen_BV.at[jnp.arange(len(token_B)), token_B].set(True),
      done_B=state.done_B | jnp.isin(token_B, jnp.array(stop_ids, jnp.int32)),
    )
    return state, out, step + 1

  out = jnp.full((len(state.done_B), CHUNK), -1, jnp.int32)
  state, out, _ = jax.lax.while_loop(unfinished, append, (state, out, 0))
  return state, out


def _bucket(length: int, most: int) -> int:
  """The next power of two, so that a new prompt length rarely means a new compile."""
  return min(most, max(8, 1 << (length - 1).bit_length()))


def _pad_left(texts: Sequence[Sequence[int]], most: int) -> tuple[np.ndarray, ...]:
  """int32 [B, T], T a bucket of at most `most`, and each row's padding [B]."""
  width = _bucket(max(map(len, texts)), most)
  padded = np.zeros((len(texts), width), np.int32)
  for row, text in zip(padded, texts, strict=True):
    row[width - len(text) :] = text
  return padded, np.array([width - len(text) for text in texts], np.int32)


def stream(
  model: GPT2,
  params: Any,
  prompts: Sequence[Sequence[int]],
  *,
  num_tokens: int,
  key: jax.Array | None = None,
  sampling: Sampling = Sampling(),
  stop_ids: Sequence[int] = (),
  overflow: str = "stop",
) -> Iterator[list[list[int]]]:
  """As `generate`, a few tokens at a time: each item has the next ones of every row."""
  if not model.config.causal:
    raise InputError("model.causal is False: must be True to generate")
  context_length = model.config.context_length
  texts = [[int(token) for token in prompt] for prompt in prompts]
  if not texts or min(map(len, texts)) == 0:
    raise InputError("prompts: each must have at least one token")
  for name, ids in (("prompts", itertools.chain(*texts)), ("stop_ids", stop_ids)):
    for token in set(ids):
      if not 0 <= token < model.config.vocab_size:
        raise InputError(
          f"{name}: token id is {token}: must be 0 to {model.config.vocab_size - 1}"
        )
  if num_tokens < 1:
    raise InputError(f"num_tokens is {num_tokens}: must be at least 1")
  if overflow not in OVERFLOWS:
    raise unknown_name("overflow", overflow, OVERFLOWS)
  longest = max(map(len, texts))
  if longest >= context_length and (overflow == "stop" or context_length == 1):
    raise InputError(
      f"a prompt has {longest} tokens: must have fewer than model.context_length,"
      f" which is {context_length}"
    )
  if key is None:
    if sampling.temperature > 0:
      raise InputError("key is None: sampling with a temperature needs one")
    key = jax.random.key(0)

  swapped_params = swap_heads(params)
  state, room, made = None, 0, 0
  while made < num_tokens:
    if room == 0:
      if state is not None and overflow == "stop":
        return
      # A full window keeps its newer half, which is read anew at positions from 0: a
      # cached key depends on its position and cannot be moved.
      if max(map(len, texts)) >= context_length:
        recent = [text[-((context_length + 1) // 2) :] for text in texts]
      else:
        recent = texts
      padded, padding = _pad_left(recent, context_length)
      room = context_length - max(map(len, recent))
      num_slots = padded.shape[1] + min(room, _bucket(num_tokens - made, room))
      ended = None if state is None else state.done_B
      state = prefill(model, params, padded, padding, num_slots=num_slots)
      state = state if ended is None else state._replace(done_B=ended)
    now = min(CHUNK, num_tokens - made, room)
    state, out = decode(
      model,
      swapped_params,
      state,
      key,
      made,
      now,
      sampling=sampling,
      stop_ids=tuple(stop_ids),
    )
    new: list[list[int]] = [[t for t in row if t >= 0] for row in out.tolist()]
    for text, tokens in zip(texts, new, strict=True):
      text.extend(tokens)
    made, room = made + now, room - now
    yield new
    if bool(state.done_B.all()):
      return


def generate(
  model: GPT2,
  params: Any,
  prompts: Sequence[Sequence[int]],
  *,
  num_tokens: int,
  key: jax.Array | None = None,
  sampling: Sampling = Sampling(),
  stop_ids: Sequence[int] = (),
  overflow: str = "stop",
) -> list[list[int]]:
  """Continues each prompt.

  Args:
    prompts: token ids; they may differ in length, none may be empty.
    num_tokens: how many to append at most.
    key: of the randomness; not needed when greedy.
    stop_ids: tokens that end a row; the row keeps the one that ended it.
    overflow: what happens when context_length is full: "stop" ends the texts there,
      "slide" forgets the older half of the window and goes on. The rows share their
      window: it is full when the longest row fills it.

  Returns:
    The new tokens of each row.

  Raises:
    InputError: an argument is out of range; the message names it.
  """
  rows = [[] for _ in prompts]
  for new in stream(
    model,
    params,
    prompts,
    num_tokens=num_tokens,
    key=key,
    sampling=sampling,
    stop_ids=stop_ids,
    overflow=overflow,
  ):
    for row, tokens in zip(rows, new, strict=True):
      row.extend(tokens)
  return rows
