"""One text that a person and a model write in turn.

The keys and values of what was read stay in the cache between the turns. What a turn
adds is read after them, in one go.

Axes: B batch, which is 1, T new tokens, S slots, V vocab_size.
"""

from collections.abc import Iterator, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax.errors import InputError
from gpt2_flax.generation import (
  CHUNK,
  decode,
  Decoding,
  empty_cache,
  LogitsFunction,
  Sampling,
)
from gpt2_flax.layers.head_kernels import swap_heads
from gpt2_flax.rows.prompts import bucket, checked_prompts
from gpt2_flax.tokenizer import Tokenizer
from gpt2_flax.transformer import GPT2
from gpt2_flax.writing.growing_text import GrowingText
from gpt2_flax.writing.stop_strings import StopStrings
from gpt2_flax.writing.texts import end_ids


class Conversation:
  """A text that grows by `say` and by `write`.

  What the model reads is what was said and shown: not the stop string or token that
  ended a turn, nor what was cut off. If nothing is said after it, the next turn begins
  with it. A full context forgets its older half.

  Attributes:
    tokens: what the model still sees of the text.
  """

  def __init__(
    self,
    model: GPT2,
    params: Any,
    tokenizer: Tokenizer,
    *,
    key: jax.Array,
    sampling: Sampling,
    stop: Sequence[str] = (),
    stop_ids: Sequence[int] | None = None,
    logits_function: LogitsFunction | None = None,
  ):
    """An empty text; arguments as in `texts.stream_texts`, for each turn."""
    self.tokens: list[int] = []
    self._model, self._tokenizer = model, tokenizer
    self._swapped_params = swap_heads(params)
    self._stop = StopStrings(stop, tokenizer.separator)
    if stop_ids is None:
      stop_ids = end_ids(tokenizer, model.config.vocab_size)
    self._stop_ids = tuple(stop_ids)
    self._how = dict(sampling=sampling, logits_function=logits_function)
    self._key, self._num_made = key, 0
    self._state: Decoding | None = None
    # So many of the tokens are in the cache; if all are, the next logits are known.
    self._num_read = 0
    # What ended the last turn, unless something was said since: tokens and their text.
    self._ended_by: tuple[list[int], str] = ([], "")

  def say(self, text: str) -> None:
    """The person's turn: the text goes on with this; InputError if it cannot."""
    new = self._tokenizer.encode(text) if self.tokens else self._tokenizer.start(text)
    self.tokens += new
    if new:
      self._ended_by = ([], "")

  def write(self, num_tokens: int) -> Iterator[str]:
    """The model's turn, in pieces, until a stop string or token, or num_tokens.

    Whoever closes the iterator ends the turn: what was not yielded is not a part of the
    text.

    Raises:
      InputError: nothing was said yet, or the model cannot write.
    """
    context_length = self._model.config.context_length
    if context_length == 1:
      raise InputError("model.context_length is 1: must be at least 2 to converse")
    window = [self.tokens[1 - context_length :]]
    checked_prompts(
      self._model.config, window, num_tokens=num_tokens, stop_ids=self._stop_ids
    )
    ended_by, first = self._ended_by
    self._ended_by = ([], "")
    self.tokens += ended_by
    if first:
      yield first
    before = list(self.tokens)
    text = GrowingText(self._tokenizer, before, self._stop, self._stop_ids)
    made: list[int] = []
    try:
      while len(made) < num_tokens and text.finish_reason is None:
        left = num_tokens - len(made)
        self._state = self._read_the_rest(left)
        now = min(CHUNK, left, context_length - len(self.tokens))
        self._state, out = decode(
          self._model,
          self._swapped_params,
          # a row that has ended would stand still
          self._state._replace(done_B=jnp.zeros(1, bool)),
          self._key,
          self._num_made,
          now,
          stop_ids=self._stop_ids,
          **self._how,
        )
        new = [token for token in np.asarray(out)[0].tolist() if token >= 0]
        self._num_made += len(new)
        made += new
        self.tokens += new
        self._num_read = len(self.tokens)
        yield text.add(new)
      yield text.finish()
    finally:
      self._keep(text, before, made)

  def _read_the_rest(self, num_tokens: int) -> Decoding:
    """The state after all tokens, with a free slot for one more at least."""
    context_length = self._model.config.context_length
    if len(self.tokens) >= context_length:
      self.tokens = self.tokens[-((context_length + 1) // 2) :]
      self._num_read = 0
    wanted = bucket(len(self.tokens) + num_tokens, context_length)
    state = _with_slots(self._state, wanted, self._model)
    if unread := self.tokens[self._num_read :]:
      num_slots = state.tokens_BS.shape[1]
      width = bucket(len(unread), num_slots - self._num_read)
      padded = np.zeros((1, width), np.int32)
      padded[0, : len(unread)] = unread
      state = _read(
        self._model, self._swapped_params, state, padded, self._num_read, len(unread)
      )
      self._num_read = len(self.tokens)
    return state

  def _keep(
    self, grown: GrowingText, before: Sequence[int], made: Sequence[int]
  ) -> None:
    """Takes back what was made after `before` and not shown."""
    start = len(self._tokenizer.decode(before))

    def of(number: int) -> str:
      """The text of so many of them."""
      return self._tokenizer.decode([*before, *made[:number]])[start:] if number else ""

    number = len(made)
    while not grown.text.startswith(of(number)):
      number -= 1
    if number == len(made):
      return
    del self.tokens[max(0, len(self.tokens) - (len(made) - number)) :]
    # The last token is read again, for its logits.
    self._num_read = max(0, min(self._num_read, len(self.tokens) - 1))
    rest = grown.text[len(of(number)) :]  # of a token that a stop string cut in two
    if rest:
      self.say(rest)
    if grown.finish_reason == "stop":
      ends = (
        n for n in range(number + 1, len(made)) if self._stop.find(of(n)) is not None
      )
      end = next(ends, len(made))
      text = of(end)[len(grown.text) :]
      self._ended_by = (
        self._tokenizer.encode(text) if rest else list(made[number:end]),
        text,
      )


def _with_slots(state: Decoding | None, num_slots: int, model: GPT2) -> Decoding:
  """The state with room for so many tokens at least, empty if there was none."""
  if state is None:
    return Decoding(
      cache=empty_cache(model.config, 1, num_slots),
      slot=jnp.int32(0),
      padding_B=jnp.zeros(1, jnp.int32),
      tokens_BS=jnp.full((1, num_slots), -1, jnp.int32),
      logits_BV=jnp.zeros((1, model.config.vocab_size), jnp.float32),
      seen_BV=jnp.zeros((1, model.config.vocab_size), bool),
      done_B=jnp.zeros(1, bool),
    )
  more = num_slots - state.tokens_BS.shape[1]
  if more <= 0:
    return state
  return state._replace(
    cache=jax.tree.map(
      lambda leaf: jnp.pad(leaf, ((0, 0), (0, 0), (0, more), (0, 0))), state.cache
    ),
    tokens_BS=jnp.pad(state.tokens_BS, ((0, 0), (0, more)), constant_values=-1),
  )


@functools.partial(jax.jit, static_argnames="model", donate_argnames="state")
def _read(
  model: GPT2,
  swapped_params: Any,
  state: Decoding,
  tokens_BT: jax.Array,
  slot: jax.typing.ArrayLike,
  length: jax.typing.ArrayLike,
) -> Decoding:
  """Reads the first `length` tokens into the slots from `slot` on; forgets later ones.

  The other tokens fill tokens_BT up to a length that is compiled already. They go into
  slots that are free: what comes next overwrites them before it could see them.
  """
  params = swap_heads(swapped_params)
  positions = slot + jnp.arange(tokens_BT.shape[1])[None]
  positions = jnp.minimum(positions, model.config.context_length - 1)
  extended: Any = model.apply(
    params, tokens_BT, positions, None, state.cache, slot, method="extend"
  )
  hidden_BTD, cache = extended
  last_BTD = jax.lax.dynamic_slice_in_dim(hidden_BTD, length - 1, 1, axis=1)
  logits_BTV: Any = model.apply(params, last_BTD, method="unembed")
  tokens_BS = jax.lax.dynamic_update_slice(state.tokens_BS, tokens_BT, (0, slot))
  is_token_BS = (jnp.arange(tokens_BS.shape[1]) < slot + length)[None]
  tokens_BS = jnp.where(is_token_BS, tokens_BS, -1)
  seen_BV = jnp.zeros_like(state.seen_BV)
  seen_BV = seen_BV.at[0, jnp.maximum(tokens_BS[0], 0)].max(is_token_BS[0])
  return Decoding(
    cache=cache,
    slot=jnp.int32(slot + length),
    padding_B=state.padding_B,
    tokens_BS=tokens_BS,
    logits_BV=logits_BTV[:, 0],
    seen_BV=seen_BV,
    done_B=state.done_B,
  )
