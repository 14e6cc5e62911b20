"""5. The next token, and the next: sample from the last logits, append, repeat.

The keys and values of tokens already read never change, so they are kept in an
explicit cache: a pytree that goes into the model and comes out longer.

Axes: B batch, T new tokens, S cache slots, H heads, K head_dim, V vocab_size.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax.errors import InputError
from gpt2_flax.layers.head_kernels import swap_heads
from gpt2_flax.layers.key_values import KeyValues, squeezed
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.rows.prompts import bucket, checked_prompts
from gpt2_flax.rows.repeats import ban_repeated_ngrams, penalise_seen
from gpt2_flax.rows.windows import Windows
from gpt2_flax.transformer import GPT2

CHUNK = 16  # tokens made on the device before the host looks at them

# Yours: (logits_BV, tokens_BS, slot) -> logits_BV, a pure function that jit can trace.
# tokens_BS is what is in each slot, -1 where no token is; `slot` is the first free one,
# so that tokens_BS[:, slot - 1] are the last tokens. In a long text that slides, only
# what the model still sees is there.
LogitsFunction = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a token is chosen from logits; applied in this order.

  Attributes:
    repetition_penalty: logits of tokens that are there already are divided by it
      where positive, else multiplied (Keskar et al., 2019, "CTRL", section 4.1).
    no_repeat_ngram_size: no run of so many tokens comes twice; 0 allows all (Paulus
      et al., 2018, "A Deep Reinforced Model for Abstractive Summarization", 2.5).
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
  no_repeat_ngram_size: int = 0

  def __post_init__(self):
    for name, holds, allowed in (
      ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
      ("top_k", self.top_k >= 0, "0 (all) or more"),
      ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
      ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
      ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "above 0"),
      ("no_repeat_ngram_size", self.no_repeat_ngram_size >= 0, "0 (all) or more"),
    ):
      if not holds:
        raise InputError(f"{name} is {getattr(self, name)}: must be {allowed}")


class Decoding(NamedTuple):
  """A batch of texts in the making.

  Attributes:
    cache: one `KeyValues` [H, B, S, K] a layer.
    slot: int scalar, the first free slot.
    padding_B: how many slots at the beginning hold no token.
    tokens_BS: int32, what is in each slot; -1 where no token is.
    logits_BV: for the token that goes into `slot`.
    seen_BV: bool, the tokens that are there already.
    done_B: bool, rows that have ended.
  """

  cache: list[KeyValues]
  slot: jax.Array
  padding_B: jax.Array
  tokens_BS: jax.Array
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
  if seen_BV is not None:
    logits_BV = penalise_seen(logits_BV, seen_BV, sampling.repetition_penalty)
  if sampling.temperature == 0:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  return jax.random.categorical(key, warped(logits_BV, sampling)).astype(jnp.int32)


def warped(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
  """The logits that a token is drawn by, from temperature to min_p: [B, V].

  -inf where a token is out of the question. The temperature must be above 0.
  """
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
  return logits_BV


def adjusted(
  logits_BV: jax.Array,
  state: "Decoding",
  sampling: Sampling,
  logits_function: LogitsFunction | None = None,
) -> jax.Array:
  """Logits after what depends on the tokens so far, and after your function: [B, V]."""
  if sampling.repetition_penalty != 1:
    logits_BV = penalise_seen(logits_BV, state.seen_BV, sampling.repetition_penalty)
  if size := sampling.no_repeat_ngram_size:
    logits_BV = ban_repeated_ngrams(logits_BV, state.tokens_BS, state.slot, size)
  if logits_function is None:
    return logits_BV
  own_BV = logits_function(logits_BV, state.tokens_BS, state.slot)
  if jnp.shape(own_BV) != logits_BV.shape:
    raise InputError(
      f"logits_function gave shape {list(jnp.shape(own_BV))}: must be"
      f" {list(logits_BV.shape)}, as it was given"
    )
  return own_BV


def _next_logits(
  model: GPT2,
  params: Any,
  tokens_BT: jax.Array,
  cache: list[KeyValues],
  slot: jax.typing.ArrayLike,
  padding_B: jax.Array,
) -> tuple[jax.Array, list[KeyValues]]:
  """Reads tokens into the slots from `slot` on; logits after the last, [B, V]."""
  last_position = model.config.context_length - 1  # a row that is full may go on
  num_slots = cache[0].key.shape[2]
  is_token_B1S = (jnp.arange(num_slots)[None] >= padding_B[:, None])[:, None]
  slots = slot + jnp.arange(tokens_BT.shape[1])[None]
  positions_BT = jnp.clip(slots - padding_B[:, None], 0, last_position)
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
  tokens_BS = jnp.full((batch_size, num_slots), -1, jnp.int32)
  tokens_BS = tokens_BS.at[:, :length].set(jnp.where(is_token_BT, prompts_BT, -1))
  row_B1 = jnp.arange(batch_size)[:, None]
  seen_BV = jnp.zeros(logits_BV.shape, bool).at[row_B1, prompts_BT].max(is_token_BT)
  done_B = jnp.zeros(batch_size, bool)
  return Decoding(
    cache, jnp.int32(length), padding_B, tokens_BS, logits_BV, seen_BV, done_B
  )


def append(
  model: GPT2, swapped_params: Any, state: Decoding, token_B: jax.Array
) -> Decoding:
  """The state after one more token in each row, int32 [B], was read."""
  # The barrier keeps the compiler from moving the swap back out of a loop.
  params = swap_heads(jax.lax.optimization_barrier(swapped_params))
  logits_BV, cache = _next_logits(
    model, params, token_B[:, None], state.cache, state.slot, state.padding_B
  )
  return Decoding(
    cache=cache,
    slot=state.slot + 1,
    padding_B=state.padding_B,
    tokens_BS=jax.lax.dynamic_update_slice(
      state.tokens_BS, token_B[:, None], (0, state.slot)
    ),
    logits_BV=logits_BV,
    seen_BV=state.seen_BV.at[jnp.arange(len(token_B)), token_B].set(True),
    done_B=state.done_B,
  )


@functools.partial(
  jax.jit,
  static_argnames=("model", "sampling", "stop_ids", "logits_function"),
  donate_argnames="state",
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
  logits_function: LogitsFunction | None = None,
) -> tuple[Decoding, jax.Array]:
  """Appends up to CHUNK tokens in one loop on the device.

  A row ends after a stop token, or when it has context_length tokens.

  Args:
    swapped_params: as `swap_heads` gives them.
    num_made: how many were made before; the randomness of a token depends on its
      number alone, not on how many are made in one call.
    num_tokens: how many to make now, at most CHUNK; fewer are made when all rows end.
    stop_ids: tokens that end a row.
    logits_function: another one compiles anew, so define it once.

  Returns:
    The state, and int32 [B, CHUNK]; -1 after a row has ended.
  """

  of_heads = state.cache[0].key.shape
  in_loop = squeezed(state.cache[0].key)  # so that it is written in place

  def reshaped(state: Decoding, shape: tuple[int, ...]) -> Decoding:
    cache = jax.tree.map(lambda leaf: leaf.reshape(shape), state.cache)
    return state._replace(cache=cache)

  def unfinished(carry: tuple) -> jax.Array:
    state, _, step = carry
    return (step < num_tokens) & ~state.done_B.all()

  def choose(carry: tuple) -> tuple:
    state, out, step = carry
    state = reshaped(state, of_heads)
    token_key = jax.random.fold_in(key, num_made + step)
    logits_BV = adjusted(state.logits_BV, state, sampling, logits_function)
    token_B = sample_token(token_key, logits_BV, sampling)
    out = out.at[:, step].set(jnp.where(state.done_B, -1, token_B))
    state = append(model, swapped_params, state, token_B)
    full_B = state.slot - state.padding_B >= model.config.context_length
    stopped_B = jnp.isin(token_B, jnp.array(stop_ids, jnp.int32))
    state = state._replace(done_B=state.done_B | full_B | stopped_B)
    return reshaped(state, in_loop), out, step + 1

  out = jnp.full((len(state.done_B), CHUNK), -1, jnp.int32)
  state, out, _ = jax.lax.while_loop(
    unfinished, choose, (reshaped(state, in_loop), out, 0)
  )
  return reshaped(state, of_heads), out


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
  logits_function: LogitsFunction | None = None,
) -> Iterator[list[list[int]]]:
  """As `generate`, a few tokens at a time: each item has the next ones of every row."""
  texts = checked_prompts(
    model.config, prompts, num_tokens=num_tokens, stop_ids=stop_ids, overflow=overflow
  )
  if key is None:
    if sampling.temperature > 0:
      raise InputError("key is None: sampling with a temperature needs one")
    key = jax.random.key(0)

  windows = Windows(
    texts, model.config.context_length, stop_ids=stop_ids, slides=overflow == "slide"
  )
  swapped_params = swap_heads(params)
  state, room, made = None, 0, 0
  while made < num_tokens and not all(windows.ended):
    if state is None or room == 0:
      padded, padding, room = windows.reread()
      num_slots = padded.shape[1] + min(room, bucket(num_tokens - made, room))
      state = prefill(model, params, padded, padding, num_slots=num_slots)
      state = state._replace(done_B=jnp.array(windows.ended))
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
      logits_function=logits_function,
    )
    made, room = made + now, room - now
    yield windows.append(np.asarray(out))


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
  logits_function: LogitsFunction | None = None,
) -> list[list[int]]:
  """Continues each prompt.

  Args:
    prompts: token ids; they may differ in length, none may be empty.
    num_tokens: how many to append at most.
    key: of the randomness; not needed when greedy.
    stop_ids: tokens that end a row; the row keeps the one that ended it.
    overflow: what happens to a row that has context_length tokens: "stop" ends it,
      "slide" forgets the older half of its window and goes on.
    logits_function: yours, called before each token is chosen: see `LogitsFunction`.
      It comes after the penalties of `sampling` and before its temperature.

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
    logits_function=logits_function,
  ):
    for row, tokens in zip(rows, new, strict=True):
      row.extend(tokens)
  return rows
