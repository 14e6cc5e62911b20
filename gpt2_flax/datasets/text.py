"""Any text: UTF-8 files, cut into characters, bytes or byte pairs.

Nobody knows the process that writes people's text, so there is no floor here.
"""

import dataclasses
import glob
import pathlib

import numpy as np

from gpt2_flax.datasets import token_cache
from gpt2_flax.datasets.dataset import Dataset
from gpt2_flax.errors import InputError


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Which text, and how it is cut.

  Attributes:
    path: a file, a folder (all .txt files in it) or a glob such as "books/**/*.txt";
      files are read in name order.
    tokenizer: "char" (those that occur), "byte", "bpe" (trained on this text), or a
      tokenizer.json or the folder of one.
    validation_fraction: the share at the end that is kept for validation.
    bpe_vocab_size: how many tokens "bpe" is trained to have.
  """

  path: str = ""
  tokenizer: str = "char"
  validation_fraction: float = 0.1
  bpe_vocab_size: int = 1024

  def __post_init__(self):
    if not 0.0 < self.validation_fraction < 1.0:
      raise InputError(
        f"data.validation_fraction is {self.validation_fraction}: must be between"
        " 0 and 1"
      )
    if not 257 <= self.bpe_vocab_size <= 1 << 20:
      raise InputError(
        f"data.bpe_vocab_size is {self.bpe_vocab_size}: must be 257 (256 bytes and the"
        " end of text) to 1048576"
      )

  def make(self, context_length: int) -> "Text":
    return Text(self, context_length)


def find_files(path: str) -> list[pathlib.Path]:
  """The files that `path` names, in name order."""
  if not path:
    raise InputError("data.path is empty: must name a UTF-8 file, a folder or a glob")
  if pathlib.Path(path).is_file():  # even if its name looks like a pattern
    return [pathlib.Path(path)]
  pattern = f"{path}/**/*.txt" if pathlib.Path(path).is_dir() else path
  names = sorted(glob.glob(pattern, recursive=True))
  files = [pathlib.Path(name) for name in names if pathlib.Path(name).is_file()]
  if not files:
    raise InputError(f"data.path is {path!r}: no such file")
  return files


class Text(Dataset):
  """Windows of a text: training ones start anywhere, validation ones end to end."""

  def __init__(self, config: TextConfig, context_length: int):
    self.context_length = context_length
    tokens, self.tokenizer = token_cache.tokenize(
      find_files(config.path), config.tokenizer, config.bpe_vocab_size
    )
    num_validation = round(len(tokens) * config.validation_fraction)
    self._tokens = {
      "train": tokens[: len(tokens) - num_validation],
      "validation": tokens[len(tokens) - num_validation :],
    }
    if len(self._tokens["train"]) < context_length + 1 or num_validation < 2:
      raise InputError(
        f"data.path is {config.path!r}, {len(tokens)} tokens, of which"
        f" {num_validation} are for validation: too short for one training window"
        f" of model.context_length + 1 = {context_length + 1} tokens and 2 tokens"
        " of validation"
      )

  def num_windows(self, split: str) -> int:
    num_targets = len(self._tokens[split]) - 1
    if split == "train":
      return num_targets - self.context_length + 1
    return -(-num_targets // self.context_length)  # the last may be cut short

  def window(self, split: str, index: int) -> np.ndarray:
    start = index if split == "train" else index * self.context_length
    tokens = self._tokens[split][start : start + self.context_length + 1]
    window = np.full(self.context_length + 1, -1, np.int32)
    window[: len(tokens)] = tokens
    return window
