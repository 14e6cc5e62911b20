"""Prompts and what a model shall answer: the loss is on the answers only.

One JSON object a line, with two texts:

    {"prompt": "Q: What is 2 + 2?\\nA:", "completion": " 4"}

A line is read as its prompt, its completion and the tokenizer's end-of-text token, if
it has one; targets are the completion and that token. Prompt and completion are cut
into tokens apart, so that the model is trained on the very tokens that `sample.py`
gives it for the prompt. Other keys of a line are passed over.
"""

from collections.abc import Iterator
import dataclasses
import itertools
import pathlib
import sys
from typing import ClassVar

import numpy as np
import tqdm

from gpt2_flax.datasets import token_cache
from gpt2_flax.datasets.arrays import require_fraction
from gpt2_flax.datasets.dataset import Batch, Dataset
from gpt2_flax.datasets.packing import pack
from gpt2_flax.datasets.text import find_files, require_bpe_vocab_size
from gpt2_flax.errors import InputError
from gpt2_flax.files.json import read_json_lines
from gpt2_flax.tokenizer import read_tokenizer, Tokenizer, tokenizer_json

FIELDS = ("prompt", "completion")


@dataclasses.dataclass(frozen=True)
class CompletionsConfig:
  """Which lines, and how they are cut.

  Attributes:
    path: a file, a folder (all .jsonl files in it), a glob, or an http(s) URL, as for
      `TextConfig`.
    validation_path: likewise, but no URL; "" keeps the last lines of `path`.
    validation_fraction: the share of lines that is kept, where there is no
      validation_path.
    tokenizer, bpe_vocab_size, sha256: as for `TextConfig`; "char" and "bpe" are made
      from the prompts and completions of `path`.
  """

  name: ClassVar = "completions"
  path: str = ""
  validation_path: str = ""
  validation_fraction: float = 0.1
  tokenizer: str = "bpe"
  bpe_vocab_size: int = 1024
  sha256: str = ""

  def __post_init__(self):
    require_fraction(self.validation_fraction)
    require_bpe_vocab_size(self.bpe_vocab_size)

  def make(self, context_length: int) -> "Completions":
    """The dataset.

    Raises:
      InputError: a file cannot be read, or a line is wrong, or its prompt leaves no
        room for its completion: names the file, the line and the field.
    """
    files = find_files(self.path, self.sha256, ".jsonl")
    source = _Source(files, "data.path")
    train, tokenizer = source.tokenized(self.tokenizer, self.bpe_vocab_size)
    train = source.fitted(train, context_length)
    if self.validation_path:
      name = "data.validation_path"
      source = _Source(find_files(self.validation_path, None, ".jsonl", name), name)
      validation = source.fitted(source.tokenized_with(tokenizer), context_length)
    else:
      num_train = len(train) - round(len(train) * self.validation_fraction)
      train, validation = train[:num_train], train[num_train:]
    if not len(train) or not len(validation):
      raise InputError(
        f"data.path is {self.path!r}: {len(train)} lines are for training,"
        f" {len(validation)} for validation: must be at least one for each"
      )
    return Completions(train, validation, tokenizer, context_length)


@dataclasses.dataclass(frozen=True)
class Lines:
  """Many lines as tokens.

  Attributes:
    tokens: of a whole file, as it is on the disk.
    starts: int [N], where each line's tokens begin.
    sizes: int [N], how many it has.
    num_prompt: int [N], how many of them are the prompt's.
  """

  tokens: np.ndarray
  starts: np.ndarray
  sizes: np.ndarray
  num_prompt: np.ndarray

  def __len__(self) -> int:
    return len(self.starts)

  def __getitem__(self, which: slice) -> "Lines":
    numbers = self.starts[which], self.sizes[which], self.num_prompt[which]
    return Lines(self.tokens, *numbers)

  def line(self, number: int) -> tuple[np.ndarray, int]:
    """The tokens of one, and how many of them are the prompt's."""
    start = self.starts[number]
    tokens = self.tokens[start : start + self.sizes[number]]
    return tokens, int(self.num_prompt[number])


class Completions(Dataset):
  """Rows of lines, as many in each as have room; none sees another.

  A window holds a row's inputs, targets and documents, one after the other. Which lines
  share a row depends on their lengths only (`packing.pack`).
  """

  def __init__(
    self, train: Lines, validation: Lines, tokenizer: Tokenizer, context_length: int
  ):
    self.tokenizer, self.context_length = tokenizer, context_length
    self._lines = {"train": train, "validation": validation}
    self._rows = {
      split: pack((lines.sizes - 1).tolist(), context_length)
      for split, lines in self._lines.items()
    }

  def num_windows(self, split: str) -> int:
    return len(self._rows[split])

  def window(self, split: str, index: int) -> np.ndarray:
    """int32 [3 T]: inputs and targets, -1 where there is none, and documents."""
    lines, row = self._lines[split], self._rows[split][index]
    inputs, targets, documents = window = np.full(
      (3, self.context_length), -1, np.int32
    )
    documents[:] = len(row)  # what is left at the end
    place = 0
    for document, line in enumerate(row):
      tokens, num_prompt = lines.line(line)
      end = place + len(tokens) - 1
      inputs[place:end] = tokens[:-1]
      targets[place + num_prompt - 1 : end] = tokens[num_prompt:]
      documents[place:end] = document
      place = end
    return window.ravel()

  def batch(self, windows: np.ndarray) -> Batch:
    inputs, targets, documents = np.split(windows, 3, axis=1)
    return {
      "inputs": np.maximum(inputs, 0),
      "targets": targets,
      "documents": documents,
    }

  def opening(self) -> list[int]:
    """The first prompt that is kept for validation."""
    tokens, num_prompt = self._lines["validation"].line(0)
    return tokens[:num_prompt].tolist()


@dataclasses.dataclass(frozen=True)
class _Source:
  """Files of lines.

  Attributes:
    name: what they are given as, for errors.
  """

  files: list[pathlib.Path]
  name: str

  def texts(self) -> Iterator[tuple[str, str, str]]:
    """Where each line stands, its prompt and its completion."""
    for file in self.files:
      for where, line in read_json_lines(file, self.name):
        for field in FIELDS:
          if field not in line:
            raise InputError(f"{where}: {field} is missing: must be a text")
          if not isinstance(line[field], str):
            kind = type(line[field]).__name__
            raise InputError(f"{where}: {field} is of {kind}: must be a text")
        yield where, line["prompt"], line["completion"]

  def tokenized(self, tokenizer: str, bpe_vocab_size: int) -> tuple[Lines, Tokenizer]:
    """All lines as tokens, and the tokenizer of that name, perhaps made from them."""
    ready = token_cache.stored_tokenizer(tokenizer)
    if ready is not None:
      return self.tokenized_with(ready), ready
    about = [tokenizer, bpe_vocab_size] if tokenizer == "bpe" else [tokenizer]

    def build(folder: pathlib.Path) -> None:
      pieces = itertools.chain.from_iterable(texts[1:] for texts in self.texts())
      self._write(folder, token_cache.new_tokenizer(tokenizer, pieces, bpe_vocab_size))

    folder = token_cache.cached(self.files, ["completions", *about], build, self.name)
    made = read_tokenizer(folder / "tokenizer.json")
    return _read(folder, made), made

  def tokenized_with(self, tokenizer: Tokenizer) -> Lines:
    """All lines as tokens."""
    folder = token_cache.cached(
      self.files,
      ["completions", tokenizer_json(tokenizer)],
      lambda folder: self._write(folder, tokenizer),
      self.name,
    )
    return _read(folder, tokenizer)

  def _write(self, folder: pathlib.Path, tokenizer: Tokenizer) -> None:
    dtype = token_cache.token_dtype(tokenizer)
    end = tokenizer.end_of_text_id
    numbers = []
    with (folder / "tokens.bin").open("wb") as out:
      for where, prompt, completion in tqdm.tqdm(
        self.texts(), desc="tokenizing", unit=" lines", disable=None
      ):
        try:
          begin = tokenizer.start(prompt)
          answer = tokenizer.encode(completion) + ([] if end is None else [end])
        except InputError as error:
          raise InputError(f"{where}: {error}") from error
        if not answer:
          raise InputError(f"{where}: completion has no tokens: must have one at least")
        out.write(np.array(begin + answer, dtype).tobytes())
        numbers.append((len(begin) + len(answer), len(begin)))
    np.save(folder / "lines.npy", np.array(numbers, np.int64).reshape(-1, 2))
    (folder / "tokenizer.json").write_text(tokenizer_json(tokenizer), "utf-8")

  def fitted(self, lines: Lines, context_length: int) -> Lines:
    """Lines that are too long lose their ends; the prompt stays whole."""
    longest = context_length + 1  # T inputs and T targets
    (without_room,) = np.nonzero(lines.num_prompt >= longest)
    if len(without_room):
      first = int(without_room[0])
      where, *_ = next(itertools.islice(self.texts(), first, None))
      raise InputError(
        f"{where}: prompt has {lines.num_prompt[first]} tokens: must have at most"
        f" {context_length}, by model.context_length, so that its completion has room"
        f" ({len(without_room)} lines are so)"
      )
    num_cut = np.count_nonzero(lines.sizes > longest)
    if num_cut:
      print(
        f"{self.name}: {num_cut:,} of {len(lines):,} lines are cut at the right, to"
        f" model.context_length + 1 = {longest} tokens",
        file=sys.stderr,
      )
    return dataclasses.replace(lines, sizes=np.minimum(lines.sizes, longest))


def _read(folder: pathlib.Path, tokenizer: Tokenizer) -> Lines:
  sizes, num_prompt = np.lib.format.open_memmap(folder / "lines.npy", "r").T
  tokens = token_cache.read_tokens(folder, tokenizer)
  return Lines(tokens, np.cumsum(sizes) - sizes, sizes, num_prompt)
