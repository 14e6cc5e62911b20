"""Tokenizers as JSON text, and from it."""

import json
import os
import pathlib

from gpt2_flax.errors import InputError, unknown_name
from gpt2_flax.files.json import read_json
from gpt2_flax.registry import Registry
from gpt2_flax.tokenizer.bpe import BPETokenizer
from gpt2_flax.tokenizer.hub_files import MERGES, read_beside, VOCAB, with_merges
from gpt2_flax.tokenizer.plain import (
  ByteTokenizer,
  CharTokenizer,
  NumberTokenizer,
  WordTokenizer,
)
from gpt2_flax.tokenizer.tokenizer import Tokenizer

# Tokenizers by the kind that they are saved under. To add yours: docs/own_parts.md
KINDS = Registry(
  "kind",
  {
    cls.kind: cls
    for cls in (
      BPETokenizer,
      ByteTokenizer,
      CharTokenizer,
      NumberTokenizer,
      WordTokenizer,
    )
  },
)


def tokenizer_json(tokenizer: Tokenizer) -> str:
  """The tokenizer as JSON text."""
  return json.dumps({"kind": tokenizer.kind, **tokenizer.state()}, ensure_ascii=False)


def same_tokens(first: Tokenizer, second: Tokenizer) -> bool:
  """Whether two cut texts alike; what lies beside them may differ."""

  def cut(tokenizer: Tokenizer) -> str:
    return json.dumps({"kind": tokenizer.kind, **tokenizer.state(), "beside": None})

  return cut(first) == cut(second)


def tokenizer_file(name: str | os.PathLike) -> pathlib.Path:
  """The file that a name means: a tokenizer.json, or the one in a folder.

  In a folder without one it is vocab.json, if that is there.
  """
  path = pathlib.Path(name)
  if not os.path.isdir(path):
    return path
  if (path / VOCAB).is_file() and not (path / "tokenizer.json").exists():
    return path / VOCAB
  return path / "tokenizer.json"


def read_tokenizer(path: pathlib.Path) -> Tokenizer:
  """Reads what `tokenizer_json` wrote, or Hugging Face's files.

  Args:
    path: a tokenizer.json; or a vocab.json, with a merges.txt beside it.
  """
  state = read_json(path)
  theirs = path.name == VOCAB or "kind" not in state
  beside = read_beside(path.parent) if theirs else {}
  try:
    if path.name == VOCAB:
      state = with_merges(state, path.with_name(MERGES), beside)
    if theirs:
      return BPETokenizer(state, beside)
    kind = state.pop("kind")
    if not isinstance(kind, str) or kind not in KINDS:
      raise unknown_name("kind", str(kind), KINDS)
    return KINDS[kind](**state)
  except (ValueError, TypeError) as error:
    raise InputError(f"{path} is no tokenizer: {error}") from error
