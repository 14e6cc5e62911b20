"""JSON files that others may have written."""

from collections.abc import Iterable, Iterator
import json
import os
import pathlib
import re
from typing import Any

from gpt2_flax.errors import InputError
from gpt2_flax.files.text import shown, text_blocks

MOST_BYTES = 16 << 20  # a tokenizer of 100,000 tokens has half of it
MOST_DEPTH = 64
MOST_PARTS = 1 << 20  # objects and lists, each of which costs as much as a long text
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file.

  Raises:
    InputError: there is no such file, it is too large, has too many parts, is nested
      too deep, not UTF-8, not JSON, not an object, or has text that cannot be written
      as UTF-8.
  """
  try:
    if path.exists() and not path.is_file():
      raise InputError(f"{path} cannot be read: it is not a file")
    if path.stat().st_size > MOST_BYTES:
      raise InputError(f"{path} is too large: must have at most {MOST_BYTES} bytes")
    return _object(path.read_bytes(), str(path))
  except FileNotFoundError as error:
    raise InputError(f"{path} is missing") from error
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}") from error


def read_json_lines(
  path: str | os.PathLike, name: str
) -> Iterator[tuple[str, dict[str, Any]]]:
  """The objects in a file that has one in each line, and where each stands.

  Lines end with "\\n" or "\\r\\n"; those of white space only are passed over.

  Args:
    path, name: as for `text.read_text`.

  Yields:
    ("NAME: FILE, line 3", the object): errors about it begin so.

  Raises:
    InputError: the file cannot be read, or a line is not an object, as `read_json`
      would have it; names the line.
  """
  for number, line in enumerate(_lines(text_blocks(path, name)), start=1):
    where = f"{name}: {shown(path)}, line {number}"
    if len(line) > MOST_BYTES:
      raise InputError(
        f"{where} is too long: must have at most {MOST_BYTES} characters"
      )
    if line.strip():
      yield where, _object(line.encode("utf-8"), where)


def _lines(blocks: Iterable[str]) -> Iterator[str]:
  rest = ""
  for block in blocks:
    *whole, rest = (rest + block).split("\n")
    yield from whole
    if len(rest) > MOST_BYTES:
      break  # the caller refuses it
  yield rest


def _object(content: bytes, where: str) -> dict[str, Any]:
  if content.count(b"[") + content.count(b"{") > MOST_PARTS:
    raise InputError(f"{where}: must have at most {MOST_PARTS} lists and objects")
  try:
    values = json.loads(content.decode("utf-8"))
    _check_depth(values)
    if SURROGATE.search(content):  # fails for half of a pair, which is no UTF-8
      json.dumps(values, ensure_ascii=False).encode("utf-8")
  except json.JSONDecodeError as error:
    line = f"line {error.lineno}, " if error.lineno > 1 else ""
    raise InputError(
      f"{where} is not JSON: {error.msg} at {line}column {error.colno}"
    ) from error
  except (ValueError, RecursionError) as error:
    raise InputError(f"{where} is not JSON: {error}") from error
  if not isinstance(values, dict):
    raise InputError(f"{where} is not a JSON object")
  return values


def _check_depth(values: Any) -> None:
  """Raises for values nested so deep that working with them may exhaust the stack."""
  level = [values]
  for _ in range(MOST_DEPTH):
    level = [
      child
      for value in level
      if isinstance(value, (dict, list))
      for child in (value.values() if isinstance(value, dict) else value)
    ]
    if not level:
      return
  raise ValueError(f"nested more than {MOST_DEPTH} deep")
