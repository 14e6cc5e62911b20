"""Files of prompts: one in each line, or JSON lines."""

from collections.abc import Iterator
import io
import json
import sys
from typing import Any, NamedTuple

from gpt2_flax.errors import InputError
from gpt2_flax.files.json import read_json_lines
from gpt2_flax.files.text import read_text, shown
from gpt2_flax.tokenizer import Tokenizer

FLAG = "--prompts"


class Prompt(NamedTuple):
  """What a line asks for.

  Attributes:
    where: the file and the line, for errors.
    fields: all that a JSON line says; "prompt" is the text.
  """

  where: str
  fields: dict[str, Any]


def read_prompts(path: str, tokenizer: Tokenizer, most: int | None) -> list[Prompt]:
  """All prompts of a file, checked; empty lines are passed over.

  Args:
    path: of JSON lines, if it ends with ".jsonl", or is "-" and stdin begins with "{";
      else each line is a prompt.
    most: tokens that a prompt may have; None for any number.

  Raises:
    InputError: names the file, the line and what is wrong with it.
  """
  prompts = [Prompt(where, fields) for where, fields in _lines(path)]
  if not prompts:
    raise InputError(f"{FLAG}: {shown(path)} has no prompt")
  for where, fields in prompts:
    text = fields.get("prompt")
    if not isinstance(text, str):
      raise InputError(f'{where} has no text "prompt"')
    try:
      json.dumps(fields, allow_nan=False)  # what is read with NaN cannot be written
      tokens = tokenizer.start(text)
    except ValueError as error:
      raise InputError(f"{where}: {error}") from error
    if most is not None and len(tokens) > most:
      raise InputError(f"{where} has {len(tokens)} tokens: must have at most {most}")
  return prompts


def _lines(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
  if path.endswith(".jsonl") or (path == "-" and _next_byte() == b"{"):
    yield from read_json_lines(path, FLAG)
    return
  for number, line in enumerate(read_text(path, FLAG).split("\n"), start=1):
    if line.strip():
      where = f"{FLAG}: {shown(path)}, line {number}"
      yield where, {"prompt": line.removesuffix("\r")}


def _next_byte() -> bytes:
  """Of stdin, which keeps it."""
  stdin = sys.stdin.buffer
  assert isinstance(stdin, io.BufferedReader)
  return stdin.peek(1)[:1]
