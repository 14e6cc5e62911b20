"""Text files as token ids on disk: made once in bounded memory, then memory-mapped.

A cache is a folder named by a hash of the files' content and of how they are cut, so a
changed text is another cache, and an unchanged one is found from anywhere.
"""

from collections.abc import Iterable, Iterator
import hashlib
import itertools
import json
import os
import pathlib

import numpy as np
import tqdm

from gpt2_flax.errors import InputError, unknown_name
from gpt2_flax.files.atomic import replacing
from gpt2_flax.files.cache import cache_folder
from gpt2_flax.files.text import byte_blocks, text_blocks
from gpt2_flax.tokenizer import (
  BPETokenizer,
  ByteTokenizer,
  CharTokenizer,
  read_tokenizer,
  Tokenizer,
  tokenizer_file,
  tokenizer_json,
)

FORMAT = 1  # counts up whenever the same text would be cut or stored differently
MOST_BYTES = 16 << 20
NAME = "data.path"  # what the files are given as
BPE_TRAINING_PIECES = 64  # the first 64 MiB say enough about which pairs are frequent


def tokenize(
  files: list[pathlib.Path], tokenizer: str, bpe_vocab_size: int
) -> tuple[np.ndarray, Tokenizer]:
  """All tokens of the files, one after the other, and the tokenizer that made them.

  Args:
    tokenizer: "char", "byte", "bpe", or a tokenizer.json or its folder.
    bpe_vocab_size: of a tokenizer that is trained here.

  Returns:
    uint16 or uint32 [N], memory-mapped.

  Raises:
    InputError: a file cannot be read, is empty or not UTF-8, or no such tokenizer.
  """
  ready = _read_tokenizer(tokenizer)
  about = [FORMAT, tokenizer if ready is None else tokenizer_json(ready)]
  about += [bpe_vocab_size] if tokenizer == "bpe" else []
  folder = cache_folder() / f"tokens-{_content_hash(files, about)}"
  if not folder.exists():
    _build(folder, files, ready or _make_tokenizer(tokenizer, files, bpe_vocab_size))
  ready = read_tokenizer(folder / "tokenizer.json")
  return np.memmap(folder / "tokens.bin", _dtype(ready), "r"), ready


def _dtype(tokenizer: Tokenizer) -> type[np.integer]:
  return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32


def _read_tokenizer(name: str) -> Tokenizer | None:
  """A tokenizer that is there already, or None for one made from the text."""
  if name in ("char", "byte", "bpe"):
    return None
  path = tokenizer_file(name)
  if not os.path.isfile(path):
    allowed = ("char", "byte", "bpe", "a tokenizer.json or its folder")
    raise unknown_name("data.tokenizer", name, allowed)
  return read_tokenizer(path)


def _make_tokenizer(
  name: str, files: list[pathlib.Path], bpe_vocab_size: int
) -> Tokenizer:
  match name:
    case "byte":
      return ByteTokenizer()
    case "char":
      characters = set()
      for piece in _pieces(files):
        characters.update(piece)
      return CharTokenizer("".join(characters))
  pieces = itertools.islice(_pieces(files), BPE_TRAINING_PIECES)
  return BPETokenizer.train(pieces, bpe_vocab_size)


def _content_hash(files: list[pathlib.Path], about: list) -> str:
  digest = hashlib.sha256(json.dumps(about).encode())
  for file in files:
    digest.update(b"file")
    for block in byte_blocks(file, NAME):
      digest.update(block)
  return digest.hexdigest()[:32]


def _pieces(files: Iterable[pathlib.Path]) -> Iterator[str]:
  """The text in pieces of about a megabyte, cut before a newline and its line.

  GPT-2's byte pairs never join that newline with what comes before it, so pieces give
  the same tokens as the whole. A text without a newline in MOST_BYTES is cut anywhere.
  """
  for file in files:
    rest, is_empty = "", True
    for block in text_blocks(file, NAME):
      rest += block
      is_empty &= not block
      end = rest.rfind("\n", 0, -1)
      while end > 0 and rest[end + 1].isspace():
        end = rest.rfind("\n", 0, end)
      if end <= 0 and len(rest) >= MOST_BYTES:
        end = len(rest)
      if end > 0:
        yield rest[:end]
        rest = rest[end:]
    if is_empty:
      raise InputError(f"{NAME}: {file} is empty: must hold text")
    if rest:
      yield rest


def _build(
  folder: pathlib.Path, files: list[pathlib.Path], tokenizer: Tokenizer
) -> None:
  """Writes a cache; it appears under its name when it is whole."""
  total = sum(file.stat().st_size for file in files)
  try:
    with replacing(folder) as temporary:
      temporary.mkdir()
      with (
        (temporary / "tokens.bin").open("wb") as out,
        tqdm.tqdm(
          desc="tokenizing",
          total=total,
          unit="B",
          unit_scale=True,
          disable=None,  # None: no bar where there is no terminal
        ) as bar,
      ):
        for piece in _pieces(files):
          out.write(np.array(tokenizer.encode(piece), _dtype(tokenizer)).tobytes())
          bar.update(len(piece.encode()))
      (temporary / "tokenizer.json").write_text(tokenizer_json(tokenizer), "utf-8")
  except InputError:
    if not folder.exists():  # else another run has just made the same cache
      raise
