"""Text files as token ids on disk: made once in bounded memory, then memory-mapped.

A cache is a folder named by a hash of the files' content and of how they are cut, so a
changed text is another cache, and an unchanged one is found from anywhere.
"""

from collections.abc import Callable, Iterable, Iterator
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

FORMAT = 2  # counts up whenever the same text would be cut or stored differently
MOST_BYTES = 16 << 20
BPE_TRAINING_PIECES = 64  # the first 64 MiB say enough about which pairs are frequent


def tokenize(
  files: list[pathlib.Path],
  tokenizer: str,
  bpe_vocab_size: int,
  name: str = "data.path",
) -> tuple[np.ndarray, Tokenizer]:
  """All tokens of the files, one after the other, and the tokenizer that made them.

  Each file is a document: between two of them is the tokenizer's end-of-text token. A
  tokenizer without one (char, byte) leaves nothing between them.

  Args:
    tokenizer: "char", "byte", "bpe", or a tokenizer.json or its folder.
    bpe_vocab_size: of a tokenizer that is trained here.
    name: what the files are given as, for errors.

  Returns:
    uint16 or uint32 [N], memory-mapped.

  Raises:
    InputError: a file cannot be read, is empty or not UTF-8, or no such tokenizer.
  """
  ready = stored_tokenizer(tokenizer)
  if ready is not None:
    return encode(files, ready, name), ready
  about = [tokenizer, bpe_vocab_size] if tokenizer == "bpe" else [tokenizer]

  def build(folder: pathlib.Path) -> None:
    pieces = itertools.chain.from_iterable(_pieces(file, name) for file in files)
    _write(folder, files, new_tokenizer(tokenizer, pieces, bpe_vocab_size), name)

  folder = cached(files, about, build, name)
  made = read_tokenizer(folder / "tokenizer.json")
  return read_tokens(folder, made), made


def encode(files: list[pathlib.Path], tokenizer: Tokenizer, name: str) -> np.ndarray:
  """As `tokenize`, with a tokenizer that is there."""

  def build(folder: pathlib.Path) -> None:
    _write(folder, files, tokenizer, name)

  folder = cached(files, [tokenizer_json(tokenizer)], build, name)
  return read_tokens(folder, tokenizer)


# ---- Tokenizers ----------------------------------------------------------------------


def stored_tokenizer(name: str) -> Tokenizer | None:
  """A tokenizer that is there already, or None for one made from the text."""
  if name in ("char", "byte", "bpe"):
    return None
  path = tokenizer_file(name)
  if not os.path.isfile(path):
    allowed = ("char", "byte", "bpe", "a tokenizer.json or its folder")
    raise unknown_name("data.tokenizer", name, allowed)
  return read_tokenizer(path)


def new_tokenizer(kind: str, pieces: Iterable[str], bpe_vocab_size: int) -> Tokenizer:
  """One of "char", "byte" or "bpe", made from the pieces of a text."""
  match kind:
    case "byte":
      return ByteTokenizer()
    case "char":
      characters = set()
      for piece in pieces:
        characters.update(piece)
      return CharTokenizer("".join(characters))
  return BPETokenizer.train(
    itertools.islice(pieces, BPE_TRAINING_PIECES), bpe_vocab_size
  )


def token_dtype(tokenizer: Tokenizer) -> type[np.integer]:
  """What its ids are stored in."""
  return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32


# ---- Caches --------------------------------------------------------------------------


def cached(
  files: list[pathlib.Path],
  about: list,
  build: Callable[[pathlib.Path], None],
  name: str,
) -> pathlib.Path:
  """The folder that `build` has made of the files; it is there whole or not at all.

  Args:
    about: what else decides its content, as JSON values.
    build: fills an empty folder; called where there is none yet.
    name: what the files are given as, for errors.
  """
  digest = hashlib.sha256(json.dumps([FORMAT, *about]).encode())
  for file in files:
    digest.update(b"file")
    for block in byte_blocks(file, name):
      digest.update(block)
  folder = cache_folder() / f"tokens-{digest.hexdigest()[:32]}"
  if not folder.exists():
    try:
      with replacing(folder) as temporary:
        temporary.mkdir()
        build(temporary)
    except InputError:
      if not folder.exists():  # else another run has just made the same cache
        raise
  return folder


def progress_bar(files: list[pathlib.Path]) -> tqdm.tqdm:
  """Over the bytes of the files; no bar where there is no terminal."""
  total = sum(file.stat().st_size for file in files)
  return tqdm.tqdm(
    desc="tokenizing", total=total, unit="B", unit_scale=True, disable=None
  )


def read_tokens(folder: pathlib.Path, tokenizer: Tokenizer) -> np.ndarray:
  """The ids in a cache, memory-mapped."""
  file, dtype = folder / "tokens.bin", token_dtype(tokenizer)
  return np.memmap(file, dtype, "r") if file.stat().st_size else np.zeros(0, dtype)


def _write(
  folder: pathlib.Path, files: list[pathlib.Path], tokenizer: Tokenizer, name: str
) -> None:
  with (folder / "tokens.bin").open("wb") as out, progress_bar(files) as bar:
    for number, file in enumerate(files):
      if number and tokenizer.end_of_text_id is not None:
        border = np.array(tokenizer.end_of_text_id, token_dtype(tokenizer))
        out.write(border.tobytes())
      for tokens in _encoded(file, tokenizer, name, bar):
        out.write(tokens.tobytes())
  (folder / "tokenizer.json").write_text(tokenizer_json(tokenizer), "utf-8")


def _encoded(
  file: pathlib.Path, tokenizer: Tokenizer, name: str, bar: tqdm.tqdm
) -> Iterator[np.ndarray]:
  """A file's tokens, a piece at a time."""
  pieces = _pieces(file, name)
  if not _takes_pieces(tokenizer):
    pieces = ["".join(pieces)]
  for piece in pieces:
    yield np.array(tokenizer.encode(piece), token_dtype(tokenizer))
    bar.update(len(piece.encode()))


def _takes_pieces(tokenizer: Tokenizer) -> bool:
  """Whether `_pieces` give the tokens of the whole.

  So they do with GPT-2's byte pairs, which never join a newline with what comes before
  it. A tokenizer that puts a space before every text is another matter.
  """
  try:
    parts = tokenizer.encode("a") + tokenizer.encode("\na")
    return tokenizer.encode("a\na") == parts
  except InputError:  # words and characters are never joined
    return True


def _pieces(file: pathlib.Path, name: str) -> Iterator[str]:
  """A file's text in pieces of about a megabyte, cut before a newline and its line.

  A text without a newline in MOST_BYTES is cut anywhere.
  """
  rest, is_empty = "", True
  for block in text_blocks(file, name):
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
    raise InputError(f"{name}: {file} is empty: must hold text")
  if rest:
    yield rest
