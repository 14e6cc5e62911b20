"""Tokenizers that need no training: words, characters, bytes, bare numbers."""

from collections.abc import Sequence
import re

from gpt2_flax.errors import InputError, unknown_name
from gpt2_flax.tokenizer.limits import MOST_TOKENS
from gpt2_flax.tokenizer.tokenizer import Tokenizer


class WordTokenizer(Tokenizer):
  """Whole words, split at white space; id 0 is the start token."""

  kind = "word"
  start_id = 0
  separator = " "

  def __init__(self, words: Sequence[str]):
    if not all(isinstance(word, str) for word in words):
      raise InputError("words: each must be a text")
    self.words = tuple(words)
    self.vocab_size = 1 + len(self.words)
    self._ids = {word: i for i, word in enumerate(self.words, start=1)}
    if len(self._ids) != len(self.words):
      raise InputError("words: each may be there only once")
    for word in self.words:
      if word.split() != [word]:
        raise InputError(f"word {word!r}: must have letters and no white space")

  def encode(self, text: str) -> list[int]:
    for word in text.split():
      if word not in self._ids:
        raise unknown_name("word", word, self.words)
    return [self._ids[word] for word in text.split()]

  def decode(self, ids: Sequence[int]) -> str:
    return self.separator.join(self.words[i - 1] for i in ids if i != self.start_id)

  def state(self) -> dict:
    return {"words": self.words}


class CharTokenizer(Tokenizer):
  """One token a character of the training text, in code point order."""

  kind = "char"

  def __init__(self, characters: str):
    if not isinstance(characters, str):
      raise InputError("characters: must be a text")
    self.characters = "".join(sorted(set(characters)))
    self.vocab_size = len(self.characters)
    self._ids = {character: i for i, character in enumerate(self.characters)}

  def encode(self, text: str) -> list[int]:
    for character in text:
      if character not in self._ids:
        raise InputError(
          f"character {character!r} is not among the {self.vocab_size} of the"
          " training text"
        )
    return [self._ids[character] for character in text]

  def decode(self, ids: Sequence[int]) -> str:
    return "".join(self.characters[i] for i in ids)

  def state(self) -> dict:
    return {"characters": self.characters}


class ByteTokenizer(Tokenizer):
  """One token a byte of UTF-8, so that it can write every text."""

  kind = "byte"
  vocab_size = 256

  def encode(self, text: str) -> list[int]:
    try:
      return list(text.encode("utf-8"))
    except UnicodeEncodeError as error:  # half of a surrogate pair
      raise InputError(f"text that is not Unicode: {error}") from error

  def decode(self, ids: Sequence[int]) -> str:
    return bytes(list(ids)).decode("utf-8", errors="replace")

  def token(self, token_id: int) -> str:
    """The character, or the number of a byte that is only a part of one."""
    return chr(token_id) if token_id < 128 else f"0x{token_id:02x}"

  def state(self) -> dict:
    return {}


class NumberTokenizer(Tokenizer):
  """Tokens without a text: each is shown as its id, with white space between."""

  kind = "number"
  separator = " "

  def __init__(self, vocab_size: int):
    if type(vocab_size) is not int or not 1 <= vocab_size <= MOST_TOKENS:
      raise InputError(f"vocab_size is {vocab_size!r}: must be 1 to {MOST_TOKENS}")
    self.vocab_size = vocab_size

  def encode(self, text: str) -> list[int]:
    for word in text.split():
      if not (re.fullmatch("[0-9]{1,9}", word) and int(word) < self.vocab_size):
        raise InputError(f"{word!r} is no token: must be 0 to {self.vocab_size - 1}")
    return [int(word) for word in text.split()]

  def decode(self, ids: Sequence[int]) -> str:
    return self.separator.join(map(str, ids))

  def state(self) -> dict:
    return {"vocab_size": self.vocab_size}
