"""Token ids that are on disk already, memory-mapped: .npy files, and nanoGPT's .bin.

config.data.name = "array"
config.data.path = "train.bin"
config.data.validation_path = "val.bin"
config.data.tokenizer = "my_tokenizer"      a folder or file; "" where there is none
"""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import ClassVar

import numpy as np

from gpt2_flax.datasets.dataset import as_batch, Batch, Dataset
from gpt2_flax.errors import InputError, unknown_name
from gpt2_flax.tokenizer import (
  NumberTokenizer,
  read_tokenizer,
  Tokenizer,
  tokenizer_file,
)

AT_ONCE = 1 << 24  # ids that are looked at together
PACKS = ("joined", "separate")  # how documents share a window


@dataclasses.dataclass(frozen=True)
class ArrayConfig:
  """Which files.

  Attributes:
    path: a .npy file with one axis of integers, or a .bin file of uint16, as nanoGPT's
      `prepare.py` writes it.
    validation_path: likewise; "" keeps the end of `path` for validation.
    validation_fraction: the share at the end that is kept, where there is no
      validation_path.
    tokenizer: a tokenizer.json or the folder of one; "" where there is none, and tokens
      are shown as numbers.
    vocab_size: how many tokens there are where there is no tokenizer; 0 for the largest
      id and one more.
    pack: see `TokenWindows`.
  """

  name: ClassVar = "array"
  path: str = ""
  validation_path: str = ""
  validation_fraction: float = 0.1
  tokenizer: str = ""
  vocab_size: int = 0
  pack: str = "joined"

  def __post_init__(self):
    require_fraction(self.validation_fraction)
    require_pack(self.pack)
    if self.vocab_size < 0:
      raise InputError(f"data.vocab_size is {self.vocab_size}: must be 0 or more")
    if self.vocab_size and self.tokenizer:
      raise InputError(
        f"data.vocab_size is {self.vocab_size}: must be 0 with data.tokenizer, which"
        " decides it"
      )

  def make(self, context_length: int) -> "TokenWindows":
    """The dataset.

    Raises:
      InputError: a file is missing, is no such array, or has an id that is too large.
    """
    arrays = {"data.path": _open(self.path, "data.path")}
    if self.validation_path:
      name = "data.validation_path"
      arrays[name] = _open(self.validation_path, name)
    largest = {name: _largest(array, name) for name, array in arrays.items()}
    tokenizer: Tokenizer = NumberTokenizer(self.vocab_size or max(largest.values()) + 1)
    if self.tokenizer:
      tokenizer = read_tokenizer(tokenizer_file(self.tokenizer))
    for name, token in largest.items():
      if token >= tokenizer.vocab_size:
        raise InputError(
          f"{name} has token id {token}: must be below {tokenizer.vocab_size}, the"
          " number of tokens"
        )
    train, *others = arrays.values()
    train, validation = (
      (train, others[0]) if others else split(train, self.validation_fraction)
    )
    return TokenWindows(
      train, validation, tokenizer, context_length, self.path, self.pack
    )


class TokenWindows(Dataset):
  """Windows of token arrays: training ones start anywhere, validation ones end to end.

  A window may hold parts of several documents, which the tokenizer's end-of-text token
  divides. It is the last target of one document and the first input of the next, as in
  `Tokenizer.start`. With pack "joined" tokens see across it. With "separate" the model
  does with each document in a window what it does with that document alone.

  Args:
    train, validation: ids, integers [N].
    name: of the data, for errors.
    pack: one of PACKS.
  """

  def __init__(
    self,
    train: np.ndarray,
    validation: np.ndarray,
    tokenizer: Tokenizer,
    context_length: int,
    name: str,
    pack: str = "joined",
  ):
    self.tokenizer, self.context_length = tokenizer, context_length
    self._tokens: Mapping[str, np.ndarray] = {"train": train, "validation": validation}
    self._border = tokenizer.end_of_text_id if pack == "separate" else None
    if pack == "separate" and self._border is None:
      raise InputError(
        "data.pack is 'separate': must be 'joined' with this tokenizer, of kind"
        f" {tokenizer.kind!r}, which has no end-of-text token between documents"
      )
    if len(train) < context_length + 1 or len(validation) < 2:
      raise InputError(
        f"data.path is {name!r}, {len(train) + len(validation)} tokens, of which"
        f" {len(validation)} are for validation: too short for one training window"
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

  def batch(self, windows: np.ndarray) -> Batch:
    batch = as_batch(windows)
    if self._border is None:
      return batch
    begins = windows[:, :-1] == self._border
    return batch | {"documents": np.cumsum(begins, axis=1, dtype=np.int32)}


def split(tokens: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
  """The tokens for training, and the share at the end that is for validation."""
  num_validation = round(len(tokens) * fraction)
  return tokens[: len(tokens) - num_validation], tokens[len(tokens) - num_validation :]


def require_pack(pack: str) -> None:
  """Raises an InputError unless it is one of PACKS."""
  if pack not in PACKS:
    raise unknown_name("data.pack", pack, PACKS)


def require_fraction(fraction: float) -> None:
  """Raises an InputError unless validation gets a part, and not all."""
  if not 0.0 < fraction < 1.0:
    raise InputError(f"data.validation_fraction is {fraction}: must be between 0 and 1")


def _open(path: str, name: str) -> np.ndarray:
  suffix = pathlib.Path(path).suffix
  try:
    if suffix == ".npy":
      array = np.lib.format.open_memmap(path, "r")  # refuses arrays of Python objects
    elif suffix == ".bin":
      array = np.memmap(path, np.uint16, "r")
    else:
      raise InputError(f"{name} is {path!r}: must end on .npy or .bin")
  except OSError as error:
    reason = error.strerror or error
    raise InputError(f"{name}: {path} cannot be read: {reason}") from error
  except ValueError as error:
    if isinstance(error, InputError):
      raise
    raise InputError(f"{name}: {path} is no array of token ids: {error}") from error
  if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
    raise InputError(
      f"{name}: {path} is {array.dtype}{list(array.shape)}: must be integers with one"
      " axis, at least one of them"
    )
  return array


def _largest(array: np.ndarray, name: str) -> int:
  largest = 0
  for start in range(0, len(array), AT_ONCE):
    part = array[start : start + AT_ONCE]
    if part.min() < 0:
      raise InputError(f"{name} has token id {part.min()}: must be 0 or more")
    largest = max(largest, int(part.max()))
  return largest
