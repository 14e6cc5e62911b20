"""Prompts become rows of one length, checked before anything is computed."""

from collections.abc import Sequence
import itertools

import numpy as np

from gpt2_flax.errors import InputError, unknown_name
from gpt2_flax.model_config import GPT2Config

OVERFLOWS = ("stop", "slide")


def checked_prompts(
  config: GPT2Config,
  prompts: Sequence[Sequence[int]],
  *,
  num_tokens: int,
  stop_ids: Sequence[int] = (),
  overflow: str = "stop",
) -> list[list[int]]:
  """Prompts as lists of their own.

  Raises:
    InputError: the model cannot write, an argument is out of range, or a prompt leaves
      no room for a token; the message names it.
  """
  if not config.causal:
    raise InputError("model.causal is False: must be True to generate")
  texts = [[int(token) for token in prompt] for prompt in prompts]
  if not texts or min(map(len, texts)) == 0:
    raise InputError("prompts: each must have at least one token")
  for name, ids in (("prompts", itertools.chain(*texts)), ("stop_ids", stop_ids)):
    for token in set(ids):
      if not 0 <= token < config.vocab_size:
        raise InputError(
          f"{name}: token id is {token}: must be 0 to {config.vocab_size - 1}"
        )
  if num_tokens < 1:
    raise InputError(f"num_tokens is {num_tokens}: must be at least 1")
  if overflow not in OVERFLOWS:
    raise unknown_name("overflow", overflow, OVERFLOWS)
  longest, most = max(map(len, texts)), config.context_length
  if longest >= most and (overflow == "stop" or most == 1):
    raise InputError(
      f"a prompt has {longest} tokens: must have fewer than model.context_length,"
      f" which is {most}"
    )
  return texts


def bucket(length: int, most: int) -> int:
  """The next power of two, so that a new prompt length rarely means a new compile."""
  return min(most, max(8, 1 << (length - 1).bit_length()))


def pad_left(texts: Sequence[Sequence[int]], most: int) -> tuple[np.ndarray, ...]:
  """int32 [B, T], T a bucket of at most `most`, and each row's padding [B]."""
  width = bucket(max(map(len, texts)), most)
  padded = np.zeros((len(texts), width), np.int32)
  for row, text in zip(padded, texts, strict=True):
    row[width - len(text) :] = text
  return padded, np.array([width - len(text) for text in texts], np.int32)
