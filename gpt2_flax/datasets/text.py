"""Any text: UTF-8 files, cut into characters or bytes.

Nobody knows the process that writes people's text, so there is no floor here.
"""

import dataclasses
import glob
import pathlib

import numpy as np

from gpt2_flax.datasets.dataset import Dataset
from gpt2_flax.errors import InputError, unknown_name
from gpt2_flax.tokenizers import ByteTokenizer, CharTokenizer

TOKENIZERS = ("char", "byte")


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Which text, and how it is cut.

  Attributes:
    path: a file, or a glob such as "books/**/*.txt"; files are read in name order.
    tokenizer: "char" (those that occur) or "byte".
    validation_fraction: the share at the end that is kept for validation.
  """

  path: str = ""
  tokenizer: str = "char"
  validation_fraction: float = 0.1

  def __post_init__(self):
    if self.tokenizer not in TOKENIZERS:
      raise unknown_name("data.tokenizer", self.tokenizer, TOKENIZERS)
    if not 0.0 < self.validation_fraction < 1.0:
      raise InputError(
        f"data.validation_fraction is {self.validation_fraction}: must be between"
        " 0 and 1"
      )

  def make(self, context_length: int) -> "Text":
    return Text(self, context_length)


def read_text(path: str) -> str:
  """The text of all files that `path` names, one after the other."""
  if not path:
    raise InputError("data.path is empty: must name a UTF-8 file or a glob")
  # a file's own name may look like a pattern
  names = [path] if pathlib.Path(path).is_file() else glob.glob(path, recursive=True)
  files = [file for file in sorted(map(pathlib.Path, names)) if file.is_file()]
  if not files:
    raise InputError(f"data.path is {path!r}: no such file")
  return "".join(_read_file(file) for file in files)


def _read_file(file: pathlib.Path) -> str:
  try:
    # bytes, then decode: reading as text would turn "\r\n" into "\n"
    text = file.read_bytes().decode("utf-8-sig")
  except OSError as error:
    raise InputError(f"data.path: cannot read {file}: {error.strerror}") from error
  except UnicodeDecodeError as error:
    raise InputError(
      f"data.path: {file} is not UTF-8: byte {error.start} is"
      f" {error.object[error.start]:#04x}"
    ) from error
  if not text:
    raise InputError(f"data.path: {file} is empty: must hold text")
  return text


class Text(Dataset):
  """Windows of a text: training ones start anywhere, validation ones end to end."""

  def __init__(self, config: TextConfig, context_length: int):
    self.context_length = context_length
    text = read_text(config.path)
    self.tokenizer = (
      CharTokenizer(text) if config.tokenizer == "char" else ByteTokenizer()
    )
    tokens = np.array(self.tokenizer.encode(text), np.uint32)
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
