"""Prompts in, texts out: `generation` for those who think in texts, not in tokens."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from gpt2_flax import generation
from gpt2_flax.errors import InputError
from gpt2_flax.generation import LogitsFunction, Sampling
from gpt2_flax.tokenizer import Tokenizer
from gpt2_flax.transformer import GPT2
from gpt2_flax.writing.beams import beam_search
from gpt2_flax.writing.growing_text import FinishReason, GrowingText
from gpt2_flax.writing.stop_strings import StopStrings

PLAIN = Sampling()


class Completion(NamedTuple):
  """What follows a prompt, or the next piece of it.

  Attributes:
    text: without the stop string or token that ended it.
    finish_reason: "stop" after one of them, "length" after num_tokens or at the end of
      the context; of a piece, None while there are more.
    num_tokens: how many were made, those that ended it or were cut off included.
  """

  text: str
  finish_reason: FinishReason | None
  num_tokens: int


def end_ids(tokenizer: Tokenizer, vocab_size: int) -> tuple[int, ...]:
  """The tokens that end a text unless others are asked for: those of its end.

  What lies beside a tokenizer of the hub may name several (eos_token_id, a number or a
  list, in generation_config.json or config.json).
  """
  beside = getattr(tokenizer, "beside", {})
  for name in ("generation_config.json", "config.json"):
    ids = beside.get(name, {}).get("eos_token_id")
    ids = ids if isinstance(ids, list) else [ids]
    if known := tuple(i for i in ids if type(i) is int and 0 <= i < vocab_size):
      return known
  end = tokenizer.end_of_text_id
  return () if end is None or end >= vocab_size else (end,)


def stream_texts(
  model: GPT2,
  params: Any,
  tokenizer: Tokenizer,
  prompts: Sequence[str],
  *,
  num_tokens: int,
  key: jax.Array | None = None,
  sampling: Sampling = PLAIN,
  stop: Sequence[str] = (),
  stop_ids: Sequence[int] | None = None,
  overflow: str = "stop",
  logits_function: LogitsFunction | None = None,
) -> Iterator[list[Completion]]:
  """What the model writes after each prompt, in pieces: each item has the next of all.

  No piece has a part of a stop string that is complete later.

  Args:
    prompts: texts; where a tokenizer has no token to begin with, none may be empty.
    num_tokens, key, sampling, overflow, logits_function: as in `generation.generate`.
    stop: strings that end a text. It ends before the one that is complete first. Where
      tokens are words, each is one or more whole words.
    stop_ids: tokens that end a text; None for the tokenizer's end of text.

  Raises:
    InputError: an argument is out of range, or a prompt has no tokens.
  """
  if stop_ids is None:
    stop_ids = end_ids(tokenizer, model.config.vocab_size)
  strings = StopStrings(stop, tokenizer.separator)
  rows = [tokenizer.start(prompt) for prompt in prompts]
  texts = [GrowingText(tokenizer, row, strings, stop_ids) for row in rows]
  for new in generation.stream(
    model,
    params,
    rows,
    num_tokens=num_tokens,
    key=key,
    sampling=sampling,
    stop_ids=stop_ids,
    overflow=overflow,
    logits_function=logits_function,
  ):
    growing = [text.finish_reason is None for text in texts]
    yield [
      Completion(text.add(tokens), text.finish_reason, grows * len(tokens))
      for text, tokens, grows in zip(texts, new, growing, strict=True)
    ]
    if all(text.finish_reason is not None for text in texts):
      return
  yield [Completion(text.finish(), text.finish_reason, 0) for text in texts]


def complete(
  model: GPT2,
  params: Any,
  tokenizer: Tokenizer,
  prompts: Sequence[str],
  **settings: Any,
) -> list[Completion]:
  """As `stream_texts`, with the same settings: each text when all are whole."""
  pieces = stream_texts(model, params, tokenizer, prompts, **settings)
  return [join(row) for row in zip(*pieces, strict=True)]


def join(pieces: Sequence[Completion]) -> Completion:
  """One of all its pieces."""
  return Completion(
    "".join(piece.text for piece in pieces),
    next((p.finish_reason for p in pieces if p.finish_reason is not None), None),
    sum(piece.num_tokens for piece in pieces),
  )


def complete_by_beams(
  model: GPT2,
  params: Any,
  tokenizer: Tokenizer,
  prompts: Sequence[str],
  *,
  num_tokens: int,
  stop: Sequence[str] = (),
  stop_ids: Sequence[int] | None = None,
  **settings: Any,
) -> list[list[Completion]]:
  """The best texts that beams find after each prompt, best first.

  Args:
    prompts, num_tokens, stop_ids: as in `stream_texts`.
    stop: each must be one token, since beams end by their tokens.
    settings: the others of `beams.beam_search`.
  """
  if stop_ids is None:
    stop_ids = end_ids(tokenizer, model.config.vocab_size)
  for string in stop:
    ids = tokenizer.encode(string)
    if len(ids) != 1:
      raise InputError(
        f"stop is {string!r}, {len(ids)} tokens: must be one token with beams"
      )
    stop_ids = (*stop_ids, *ids)
  rows = [tokenizer.start(prompt) for prompt in prompts]
  found = beam_search(
    model, params, rows, num_tokens=num_tokens, stop_ids=stop_ids, **settings
  )
  completions = []
  for row, beams in zip(rows, found, strict=True):
    texts = []
    for beam in beams:
      text = GrowingText(tokenizer, row, StopStrings(()), stop_ids)
      whole = text.add(beam.tokens) + text.finish()
      texts.append(Completion(whole, text.finish_reason, len(beam.tokens)))
    completions.append(texts)
  return completions
