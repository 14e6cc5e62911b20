"""What a tokenizer.json may ask for: the library that runs it trusts it.

A few hundred bytes can make it take forever, or all memory there is: a regular
expression that tries every way to match, a chain of replacements each of which makes
the text a thousand times longer. What real tokenizers have is far from these limits.
"""

import base64
from collections.abc import Iterator
import itertools
import math
import re
from typing import Any

from gpt2_flax.errors import InputError

STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
MOST_PARTS = 256  # objects and lists, of all steps together
MOST_GROWTH = 1024  # times that a text may become longer
MOST_TOKENS = 1 << 20
MOST_LETTERS = 1000  # in a word that is searched for pieces, letter by letter
MOST_REPEATS, MOST_OPTIONS = 2, 4  # in one alternative of a regular expression
GROUPS = ("(?:", "(?=", "(?!", "(?<=", "(?<!", "(?i:")

_ESCAPE_OR_CLASS = re.compile(r"\\.|\[\^?(?:\\.|[^\]\\])*\]", re.DOTALL)


def check(tokenizer: dict[str, Any]) -> None:
  """Raises an `InputError` that names what a tokenizer.json has too much of."""
  steps = {step: tokenizer.get(step) for step in STEPS}
  parts = list(itertools.islice(_parts(steps), MOST_PARTS + 1))
  if len(parts) > MOST_PARTS:
    raise InputError(f"{' and '.join(STEPS)} have more than {MOST_PARTS} parts")
  for part in parts:
    if isinstance(part, dict) and "Regex" in part:
      _check_regex(str(part["Regex"]))
  growth = math.prod(map(_growth, parts))
  if growth > MOST_GROWTH:
    raise InputError(
      f"its parts make a text up to {growth} times as long: must be at most"
      f" {MOST_GROWTH}"
    )
  model = tokenizer.get("model")
  model = model if isinstance(model, dict) else {}
  for tokens in (model.get("vocab"), tokenizer.get("added_tokens")):
    if isinstance(tokens, (dict, list)) and len(tokens) > MOST_TOKENS:
      raise InputError(f"{len(tokens)} tokens: must have at most {MOST_TOKENS}")
  letters = model.get("max_input_chars_per_word")
  if isinstance(letters, int) and letters > MOST_LETTERS:
    raise InputError(
      f"max_input_chars_per_word is {letters}: must be at most {MOST_LETTERS}"
    )


def _parts(value: Any) -> Iterator[dict | list]:
  """Some JSON values, and every object and list in them."""
  if isinstance(value, (dict, list)):
    yield value
    for inner in value.values() if isinstance(value, dict) else value:
      yield from _parts(inner)


def _growth(part: dict | list) -> int:
  """How many times longer a part can make a text; 1 if only a little."""
  match part:
    case {"type": "Replace", "content": str(content), "pattern": {"String": str(old)}}:
      return math.ceil(max(1, len(content)) / max(1, len(old))) + (not old)
    case {"type": "Replace", "content": str(content)}:
      return 1 + len(content)
    case {"type": "Prepend", "prepend": str(content)}:
      return 1 + len(content)
    case {"type": "ByteLevel"}:
      return 2
    case {"type": "Precompiled", "precompiled_charsmap": str(encoded)}:
      return _longest_replacement(encoded)
  return 1


def _longest_replacement(charsmap: str) -> int:
  """Of SentencePiece's rules: a tree's size, the tree, and texts that end with a 0."""
  try:
    content = base64.b64decode(charsmap, validate=True)
  except ValueError as error:
    raise InputError(f"precompiled_charsmap is not base64: {error}") from error
  texts = content[4 + int.from_bytes(content[:4], "little") :]
  return max(1, *map(len, texts.split(b"\0")))


def _check_regex(regex: str) -> None:
  """Few repeats and no repeated group: then a match takes few tries.

  With r repeats in an alternative, n letters are tried in some n^r ways at most.
  """
  bare = _ESCAPE_OR_CLASS.sub("x", regex)
  unusual = re.search(r"\\[gkKR\d]", regex) or any(
    not bare.startswith(GROUPS, at.start()) for at in re.finditer(r"\(\?", bare)
  )
  alternatives, depth = [""], 0
  for character in bare:
    depth += {"(": 1, ")": -1}.get(character, 0)
    if character == "|" and depth == 0:
      alternatives.append("")
    alternatives[-1] += character
  if (
    unusual
    or re.search(r"\)[*+{]", bare)
    or any(len(re.findall(r"[*+{]", part)) > MOST_REPEATS for part in alternatives)
    or any(part.count("?") > MOST_OPTIONS for part in alternatives)
  ):
    raise InputError(
      f"the regular expression {regex!r} could take too long: must have at most"
      f" {MOST_REPEATS} repeats in an alternative, of characters and not of groups"
    )
