"""A tokenizer as Hugging Face's layout has it: one file or two, and what lies beside.

tokenizer.json is all there is to cutting a text. Older folders have vocab.json and
merges.txt instead, GPT-2's byte pairs. Which tokens begin, end and fill up a text, and
how long it may be, other files say. Nothing here needs them, but who opens the weights
elsewhere does, so they are carried along.
"""

import pathlib
from typing import Any

from gpt2_flax.errors import InputError
from gpt2_flax.files.json import MOST_BYTES, read_json

VOCAB, MERGES = "vocab.json", "merges.txt"
ABOUT = "tokenizer_config.json"
SPECIAL = "special_tokens_map.json"
ADDED = "added_tokens.json"
GENERATION = "generation_config.json"
CONFIG = "config.json"
TEMPLATE = "chat_template.jinja"
BESIDE = (ABOUT, SPECIAL, ADDED, GENERATION)
# What config.json says of a text, and not of the model.
TEXT_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "task_specific_params")
DECODER = "added_tokens_decoder"  # in tokenizer_config.json: tokens by their ids
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of a token
END_OF_TEXT = "<|endoftext|>"


def read_beside(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
  """What the files beside a tokenizer say, by their names; those that are there.

  Of config.json it is TEXT_KEYS only. A chat template that is a file of its own is in
  tokenizer_config.json afterwards, which means the same.

  Raises:
    InputError: one of them is not a JSON object.
  """
  beside = {
    name: read_json(folder / name) for name in BESIDE if (folder / name).exists()
  }
  if (folder / TEMPLATE).exists():
    beside.setdefault(ABOUT, {})["chat_template"] = _read_text(folder / TEMPLATE)
  if (folder / CONFIG).exists():
    config = read_json(folder / CONFIG)
    if said := {key: config[key] for key in TEXT_KEYS if key in config}:
      beside[CONFIG] = said
  return beside


def special_token(beside: dict[str, dict[str, Any]], name: str) -> str | None:
  """The text of "eos_token" and the like, where the files beside say it."""
  for file in (ABOUT, SPECIAL):
    match beside.get(file, {}).get(name):
      case str(content) | {"content": str(content)}:
        return content
  return None


def with_merges(
  vocab: dict[str, Any], merges_file: pathlib.Path, beside: dict[str, dict[str, Any]]
) -> dict[str, Any]:
  """A vocab.json, with its merges.txt, as the tokenizer.json that means the same.

  Raises:
    InputError: merges.txt is missing, or not what GPT-2 has under that name; or what
      lies beside them has no ids for its tokens.
  """
  merges = []
  for number, line in enumerate(_read_text(merges_file).split("\n"), start=1):
    line = line.rstrip("\r")
    if not line or line.startswith("#version"):
      continue
    pair = line.split(" ")
    if len(pair) != 2:
      raise InputError(f"{merges_file}: line {number} must be two pieces")
    merges.append(pair)
  prefix = bool(beside.get(ABOUT, {}).get("add_prefix_space", False))
  byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
  return {
    "version": "1.0",
    "added_tokens": _added_tokens(vocab, beside),
    "pre_tokenizer": byte_level | {"add_prefix_space": prefix},
    "decoder": byte_level | {"add_prefix_space": prefix},
    "model": {"type": "BPE", "vocab": vocab, "merges": merges},
  }


def _added_tokens(
  vocab: dict[str, Any], beside: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
  """Tokens that are looked for before a text is cut, in the order of their ids."""
  names = ("bos_token", "eos_token", "unk_token", "pad_token")
  special = {special_token(beside, name) or END_OF_TEXT for name in names}
  ids = {token: vocab[token] for token in sorted(special) if token in vocab}
  ids |= beside.get(ADDED, {})
  for token, token_id in ids.items():
    if type(token_id) is not int:
      raise InputError(f"the id of {token!r} is {token_id!r}: must be an integer")
  by_id = {ids[token]: {"content": token, "special": token in special} for token in ids}
  decoder = beside.get(ABOUT, {}).get(DECODER, {})
  if not isinstance(decoder, dict):
    raise InputError(f"{ABOUT}: {DECODER} must be an object")
  for token_id, token in decoder.items():
    if not token_id.isdecimal() or not isinstance(token, dict):
      raise InputError(
        f"{ABOUT}: {DECODER} has {token_id!r}: {token!r}: must be an id and an object"
      )
    by_id[int(token_id)] = token
  following = len(vocab)
  for token_id in sorted(by_id):
    content = by_id[token_id].get("content")
    if content not in vocab:
      if token_id != following:
        raise InputError(
          f"the added token {content!r} has id {token_id}: must be {following}, the"
          " next"
        )
      following += 1
  plain = dict.fromkeys(FLAGS, False)
  return [plain | by_id[token_id] | {"id": token_id} for token_id in sorted(by_id)]


def _read_text(path: pathlib.Path) -> str:
  try:
    if path.stat().st_size > MOST_BYTES:
      raise InputError(f"{path} is too large: must have at most {MOST_BYTES} bytes")
    return path.read_bytes().decode("utf-8")
  except FileNotFoundError as error:
    raise InputError(f"{path} is missing") from error
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}") from error
  except UnicodeDecodeError as error:
    raise InputError(f"{path} is not UTF-8: {error}") from error
