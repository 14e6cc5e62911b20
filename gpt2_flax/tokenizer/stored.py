"""Tokenizers as JSON text, and from it."""

import json
import os
import pathlib

from gpt2_flax.errors import InputError, unknown_name
from gpt2_flax.files.json import read_json
from gpt2_flax.registry import Registry
from gpt2_flax.tokenizer.bpe import BPETokenizer
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


def tokenizer_file(name: str) -> pathlib.Path:
  """The file that a name means: a tokenizer.json, or the one in a folder."""
  path = pathlib.Path(name)
  return path / "tokenizer.json" if os.path.isdir(path) else path


def read_tokenizer(path: pathlib.Path) -> Tokenizer:
  """Reads what `tokenizer_json` wrote, or a tokenizer.json of Hugging Face's."""
  state = read_json(path)
  try:
    if "kind" not in state:
      return BPETokenizer(state)
    kind = state.pop("kind")
    if not isinstance(kind, str) or kind not in KINDS:
      raise unknown_name("kind", str(kind), KINDS)
    return KINDS[kind](**state)
  except (ValueError, TypeError) as error:
    raise InputError(f"{path} is no tokenizer: {error}") from error
