"""Beam search: several texts grow side by side, and the most probable are kept.

All of it is one loop on the device. What is kept, what ends and how texts of unequal
length are compared is as in transformers, with its `early_stopping=False`.

Axes: B prompts, N beams, C candidates, L new tokens, V vocab_size. The rows of the
batch that the model sees are B * N, the beams of a prompt side by side.
"""

from collections.abc import Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax.errors import InputError
from gpt2_flax.generation import (
  adjusted,
  append,
  Decoding,
  LogitsFunction,
  prefill,
  Sampling,
)
from gpt2_flax.layers.head_kernels import swap_heads
from gpt2_flax.rows.prompts import bucket, checked_prompts, pad_left
from gpt2_flax.transformer import GPT2


class Beam(NamedTuple):
  """One of the texts found.

  Attributes:
    tokens: the new ones; the stop token is the last, if one ended it.
    score: the sum of their log-probabilities, over their number ** length_penalty.
  """

  tokens: list[int]
  score: float


class _Texts(NamedTuple):
  """Some texts for each prompt: tokens int32, -1 where none is, and what ranks them."""

  tokens_BNL: jax.Array
  scores_BN: jax.Array

  def take(self, index_BN: jax.Array) -> "_Texts":
    return _Texts(
      jnp.take_along_axis(self.tokens_BNL, index_BN[:, :, None], axis=1),
      jnp.take_along_axis(self.scores_BN, index_BN, axis=1),
    )

  def best(self, number: int) -> tuple["_Texts", jax.Array]:
    """The best, in order, and where they were."""
    index_BN = jax.lax.top_k(self.scores_BN, number)[1]
    return self.take(index_BN), index_BN


def beam_search(
  model: GPT2,
  params: Any,
  prompts: Sequence[Sequence[int]],
  *,
  num_tokens: int,
  num_beams: int = 4,
  length_penalty: float = 1.0,
  stop_ids: Sequence[int] = (),
  repetition_penalty: float = 1.0,
  no_repeat_ngram_size: int = 0,
  logits_function: LogitsFunction | None = None,
) -> list[list[Beam]]:
  """The num_beams best continuations of each prompt that were found, best first.

  At each step the most probable continuations of all beams go on. Those that end with
  a stop token, or with num_tokens or context_length tokens, are ranked by their score.
  A prompt is done when its best beam that goes on scores below all num_beams that have
  ended.

  Args:
    prompts, num_tokens, stop_ids: as in `generation.generate`.
    num_beams: how many texts grow at once; each takes a row of the cache.
    length_penalty: 0 ranks texts by the sum of their log-probabilities, 1 by the mean;
      more favours long texts, less than 0 short ones.
    repetition_penalty, no_repeat_ngram_size: as in `generation.Sampling`, on
      log-probabilities in place of logits.
    logits_function: as in `generation.generate`, on log-probabilities too.

  Raises:
    InputError: an argument is out of range; the message names it.
  """
  config = model.config
  texts = checked_prompts(config, prompts, num_tokens=num_tokens, stop_ids=stop_ids)
  if num_beams < 1:
    raise InputError(f"num_beams is {num_beams}: must be at least 1")
  if not np.isfinite(length_penalty):
    raise InputError(f"length_penalty is {length_penalty}: must be finite")
  sampling = Sampling(
    temperature=0,
    repetition_penalty=repetition_penalty,
    no_repeat_ngram_size=no_repeat_ngram_size,
  )
  padded, padding = pad_left(texts, config.context_length)
  room = [min(num_tokens, config.context_length - len(text)) for text in texts]
  length = bucket(max(room), config.context_length)
  state = prefill(model, params, padded, padding, num_slots=padded.shape[1] + length)
  found = _search(
    model,
    swap_heads(params),
    state,
    jnp.array(room),
    jnp.float32(length_penalty),
    num_beams=num_beams,
    length=length,
    stop_ids=tuple(stop_ids),
    sampling=sampling,
    logits_function=logits_function,
  )
  tokens_BNL, scores_BN = jax.tree.map(np.asarray, found)
  return [
    [
      Beam(row[row >= 0].tolist(), float(score))
      for row, score in zip(rows, scores, strict=True)
      if score > -np.inf  # there may be fewer texts than beams
    ]
    for rows, scores in zip(tokens_BNL, scores_BN, strict=True)
  ]


def _take_rows(state: Decoding, row_M: jax.Array) -> Decoding:
  """The state of these rows, each of which may come several times."""
  return Decoding(
    cache=jax.tree.map(lambda leaf: jnp.take(leaf, row_M, axis=1), state.cache),
    slot=state.slot,
    padding_B=state.padding_B[row_M],
    tokens_BS=state.tokens_BS[row_M],
    logits_BV=state.logits_BV[row_M],
    seen_BV=state.seen_BV[row_M],
    done_B=state.done_B[row_M],
  )


@functools.partial(
  jax.jit,
  static_argnames=(
    *("model", "num_beams", "length", "stop_ids"),
    *("sampling", "logits_function"),
  ),
)
def _search(
  model: GPT2,
  swapped_params: Any,
  state: Decoding,
  room_B: jax.Array,
  length_penalty: jax.Array,
  *,
  num_beams: int,
  length: int,
  stop_ids: tuple[int, ...],
  sampling: Sampling,
  logits_function: LogitsFunction | None,
) -> _Texts:
  """The loop; `state` has one row a prompt, which may get room_B tokens."""
  batch_size, vocab_size = state.logits_BV.shape
  # As many candidates as leave num_beams that go on, whatever ends.
  num_candidates = num_beams * min(max(2, 1 + len(stop_ids)), vocab_size)
  first_B1 = num_beams * jnp.arange(batch_size)[:, None]

  def unfinished(carry: tuple) -> jax.Array:
    return carry[-1].any()

  def step(carry: tuple) -> tuple:
    state, growing, ended, num_made, open_B = carry
    log_probs_MV = adjusted(
      jax.nn.log_softmax(state.logits_BV), state, sampling, logits_function
    )
    sums_BNV = growing.scores_BN[:, :, None] + log_probs_MV.reshape(
      batch_size, num_beams, vocab_size
    )
    sums_BC, index_BC = jax.lax.top_k(sums_BNV.reshape(batch_size, -1), num_candidates)
    beam_BC, token_BC = index_BC // vocab_size, index_BC % vocab_size
    tokens_BCL = growing.take(beam_BC).tokens_BNL.at[:, :, num_made].set(token_BC)
    num_made += 1
    lengths = num_made.astype(jnp.float32) ** length_penalty
    ends_BC = jnp.isin(token_BC, jnp.array(stop_ids, jnp.int32))
    ends_BC |= (num_made >= room_B)[:, None]

    # Of those that end, only the best num_beams of all candidates count.
    counts_BC = (
      ends_BC & open_B[:, None] & (jnp.arange(num_candidates) < num_beams)[None]
    )
    both = _Texts(
      jnp.concatenate([ended.tokens_BNL, tokens_BCL], axis=1),
      jnp.concatenate(
        [ended.scores_BN, jnp.where(counts_BC, sums_BC / lengths, -jnp.inf)], axis=1
      ),
    )
    ended, _ = both.best(num_beams)

    candidates = _Texts(tokens_BCL, jnp.where(ends_BC, -jnp.inf, sums_BC))
    growing, index_BN = candidates.best(num_beams)
    row_BN = first_B1 + jnp.take_along_axis(beam_BC, index_BN, axis=1)
    token_BN = jnp.take_along_axis(token_BC, index_BN, axis=1)
    state = _take_rows(state, row_BN.reshape(-1))
    state = append(model, swapped_params, state, token_BN.reshape(-1))
    best_B = growing.scores_BN[:, 0] / lengths
    open_B &= best_B > ended.scores_BN.min(axis=1)
    return state, growing, ended, num_made, open_B

  shape = (batch_size, num_beams)
  none_BNL = jnp.full((*shape, length), -1, jnp.int32)
  # All beams begin alike: only the first may go on.
  zero_BN = jnp.where(jnp.arange(num_beams)[None] == 0, jnp.zeros(shape), -jnp.inf)
  begun = (
    _take_rows(state, jnp.repeat(jnp.arange(batch_size), num_beams)),
    _Texts(none_BNL, zero_BN),
    _Texts(none_BNL, jnp.full(shape, -jnp.inf)),
    jnp.int32(0),
    jnp.ones(batch_size, bool),
  )
  return jax.lax.while_loop(unfinished, step, begun)[2]
