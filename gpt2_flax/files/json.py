"""JSON files that others may have written."""

import json
import pathlib
import re
from typing import Any

from gpt2_flax.errors import InputError

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
    content = path.read_bytes()
    if content.count(b"[") + content.count(b"{") > MOST_PARTS:
      raise InputError(f"{path}: must have at most {MOST_PARTS} lists and objects")
    values = json.loads(content.decode("utf-8"))
    _check_depth(values)
    if SURROGATE.search(content):  # fails for half of a pair, which is no UTF-8
      json.dumps(values, ensure_ascii=False).encode("utf-8")
  except FileNotFoundError as error:
    raise InputError(f"{path} is missing") from error
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}") from error
  except InputError:
    raise
  except (ValueError, RecursionError) as error:
    raise InputError(f"{path} is not JSON: {error}") from error
  if not isinstance(values, dict):
    raise InputError(f"{path} is not a JSON object")
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
