"""What the training loop knows of any data: windows of tokens, perhaps an oracle."""

import abc
from typing import Any

import numpy as np

from gpt2_flax.errors import InputError
from gpt2_flax.tokenizer import Tokenizer

SPLITS = ("train", "validation")
Batch = dict[str, np.ndarray]


def as_batch(windows: np.ndarray) -> Batch:
  """Windows [B, T + 1] -> inputs and targets, int32 [B, T] each.

  Targets of -1 do not count; -1 among the inputs becomes 0, any token would do.
  """
  return {"inputs": np.maximum(windows[:, :-1], 0), "targets": windows[:, 1:]}


class Dataset(abc.ABC):
  """Windows of context_length + 1 tokens, found by split and index.

  Attributes:
    tokenizer: turns the tokens into text and back.
    context_length: a window holds one token more: T inputs and T targets.
  """

  tokenizer: Tokenizer
  context_length: int

  @abc.abstractmethod
  def num_windows(self, split: str) -> int:
    """How many windows "train" or "validation" has."""

  @abc.abstractmethod
  def window(self, split: str, index: int) -> np.ndarray:
    """int32 [T + 1], the same whenever it is asked for; -1 after the data's end."""

  def batch(self, windows: np.ndarray) -> Batch:
    """What the model reads and what it is to say: "inputs" and "targets".

    Targets are the next tokens. A dataset that overrides this may ask for something
    else, and its windows may have another length. It may add "documents", int [B, T]:
    a number for each token; then tokens see those of their own number only, and
    positions count from 0 in each (`layers.masks.apart`).
    """
    return as_batch(windows)

  def opening(self) -> list[int]:
    """What a sample begins with: the start token, or the first of validation."""
    if self.tokenizer.start_id is not None:
      return [self.tokenizer.start_id]
    return self.window("validation", 0)[:1].tolist()

  def next_token_probabilities(self, tokens: np.ndarray) -> np.ndarray | None:
    """The exact distribution that the process draws each next token from.

    Args:
      tokens: int [N], from the start of a window.

    Returns:
      float64 [N, V], row i is P(token i + 1 | tokens 0 .. i); None where nobody
      knows (text that people wrote).
    """
    del tokens
    return None

  def process(self) -> dict[str, Any] | None:
    """What the page needs to compute the oracle by itself, as JSON values and arrays.

    Its "kind" names the page's own code (interpret/page/web/languages.js); None where
    there is none: then the page shows the oracle for the text that it was made with.
    """
    return None


class ToyLanguage(Dataset):
  """A random process with a known distribution; as many windows as one likes.

  Every window begins with the tokenizer's start token. Window i of a split is drawn
  from a random stream of its own, so train and validation never share one.
  """

  seed: int

  def num_windows(self, split: str) -> int:
    del split
    return 2**31 - 1

  def window(self, split: str, index: int) -> np.ndarray:
    stream = np.random.SeedSequence((self.seed, SPLITS.index(split), index))
    return self.sample(np.random.default_rng(stream), self.context_length + 1)

  @abc.abstractmethod
  def sample(self, rng: np.random.Generator, length: int) -> np.ndarray:
    """int32 [length], the start token first."""

  @abc.abstractmethod
  def next_token_probabilities(self, tokens: np.ndarray) -> np.ndarray: ...


def require_seed(seed: int) -> None:
  """Raises an InputError for a negative seed."""
  if seed < 0:
    raise InputError(f"data.seed is {seed}: must be 0 or more")


def require_start_token(tokens: np.ndarray, start_id: int | None) -> None:
  """Raises an InputError unless the tokens begin with the start token."""
  if len(tokens) == 0 or tokens[0] != start_id:
    raise InputError(f"tokens must begin with the start token, id {start_id}")


def floor(dataset: Dataset, windows: np.ndarray) -> float | None:
  """The loss that no model can beat on these windows, in nats a token.

  The mean of -ln P(target | prefix) under the process itself, over the very tokens
  that a model's loss is computed on; None for data without an oracle.

  Args:
    windows: int [N, T + 1].
  """
  batch = dataset.batch(windows)
  total = 0.0
  for inputs, targets in zip(batch["inputs"], batch["targets"], strict=True):
    probabilities = dataset.next_token_probabilities(inputs)
    if probabilities is None:
      return None
    (counted,) = np.nonzero(targets >= 0)
    total -= float(np.log(probabilities[counted, targets[counted]]).sum())
  return total / np.count_nonzero(batch["targets"] >= 0)
