"""Text that people bring: the one reader of all doors and datasets.

UTF-8, character for character as it is there: "\\r\\n" stays. Only a byte order mark at
the beginning is dropped, which is no part of the text.
"""

import codecs
from collections.abc import Iterator
import contextlib
import os
import sys

from gpt2_flax.errors import InputError

BLOCK_BYTES = 1 << 20  # read at once


def read_text(path: str | os.PathLike, name: str) -> str:
  """The text of a file.

  Args:
    path: of the file; "-" for stdin.
    name: what the path was given as, for errors: a flag, or a key of a config.

  Raises:
    InputError: it cannot be read, or is not UTF-8; names the file and the wrong byte.
  """
  return "".join(text_blocks(path, name))


def text_blocks(path: str | os.PathLike, name: str) -> Iterator[str]:
  """As `read_text`, in blocks of about a megabyte."""
  # bytes, then decode: reading as text would turn "\r\n" into "\n"
  decoder = codecs.getincrementaldecoder("utf-8-sig")()
  num_read = 0
  try:
    for block in byte_blocks(path, name):
      num_read += len(block)
      yield decoder.decode(block)
    yield decoder.decode(b"", final=True)
  except UnicodeDecodeError as error:
    where = num_read - len(error.object) + error.start
    raise InputError(
      f"{name}: {shown(path)} is not UTF-8: byte {where} is"
      f" {error.object[error.start]:#04x}"
    ) from error


def byte_blocks(path: str | os.PathLike, name: str) -> Iterator[bytes]:
  """The bytes of a file, in blocks; as for `read_text`, whatever they mean."""
  try:
    with _opened(path) as file:
      while block := file.read(BLOCK_BYTES):
        yield block
  except OSError as error:
    raise InputError(
      f"{name}: {shown(path)} cannot be read: {error.strerror or error}"
    ) from error


def _opened(path: str | os.PathLike):
  return contextlib.nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb")


def shown(path: str | os.PathLike) -> str:
  """The path as errors name it."""
  return "stdin" if path == "-" else os.fspath(path)
