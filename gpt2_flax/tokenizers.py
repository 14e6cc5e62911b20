"""Text to token ids and back. One small interface, one class a kind of token."""

import abc
from collections.abc import Iterable, Iterator, Sequence
import contextlib
import json
import pathlib
from typing import ClassVar

import tokenizers

from gpt2_flax import tokenizer_limits
from gpt2_flax.errors import InputError, unknown_name
from gpt2_flax.json_files import read_json


class Tokenizer(abc.ABC):
  """What every tokenizer offers.

  Attributes:
    kind: the name it is saved under.
    vocab_size: ids are 0 .. vocab_size - 1.
    start_id: the token that every sequence begins with, or None. `encode` does not
      add it: it belongs to a sequence, not to its text.
    end_of_text_id: the token between documents, or None. A text may start after it.
  """

  kind: ClassVar[str]
  vocab_size: int
  start_id: int | None = None
  end_of_text_id: int | None = None

  @abc.abstractmethod
  def encode(self, text: str) -> list[int]:
    """Token ids of a text; an `InputError` names what it cannot write."""

  @abc.abstractmethod
  def decode(self, ids: Sequence[int]) -> str:
    """The text of some token ids; a start token leaves no trace."""

  def start(self, text: str) -> list[int]:
    """The ids that a text to be continued begins with."""
    prefix = [] if self.start_id is None else [self.start_id]
    if not prefix and not text and self.end_of_text_id is not None:
      prefix = [self.end_of_text_id]  # as after another document's end
    if not prefix and not text:
      raise InputError("the prompt is empty: must have at least one token")
    return prefix + self.encode(text)

  def token(self, token_id: int) -> str:
    """One token as a person would call it."""
    return "<s>" if token_id == self.start_id else self.decode([token_id])

  @abc.abstractmethod
  def state(self) -> dict:
    """What `__init__` needs to build this tokenizer again, as JSON values."""


class WordTokenizer(Tokenizer):
  """Whole words, split at white space; id 0 is the start token."""

  kind = "word"
  start_id = 0

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
    return " ".join(self.words[i - 1] for i in ids if i != self.start_id)

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
    """A part of a character, which is no text, by its number."""
    return chr(token_id) if token_id < 128 else f"0x{token_id:02x}"

  def state(self) -> dict:
    return {}


@contextlib.contextmanager
def _library_errors(what: str) -> Iterator[None]:
  """What the tokenizers library raises, as an `InputError`."""
  try:
    yield
  except BaseException as error:
    # Its panics are no `Exception`s, and their class has no name to import.
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
      raise InputError(f"{what}: {error}") from error
    raise


class BPETokenizer(Tokenizer):
  """Byte-level byte pairs, as GPT-2 uses; any tokenizer.json of Hugging Face's.

  Frequent neighbours become one token: Sennrich et al. (2016), "Neural Machine
  Translation of Rare Words with Subword Units"; over bytes, so that every text can be
  written: Radford et al. (2019), section 2.2. Its start token, if it has one, is the
  one that the file has put before every text.
  """

  kind = "bpe"
  END_OF_TEXT = "<|endoftext|>"

  def __init__(self, tokenizer: dict):
    if not isinstance(tokenizer, dict):
      raise InputError("not a tokenizer.json: must be a JSON object")
    tokenizer_limits.check(tokenizer)
    with _library_errors("not a tokenizer.json"):
      self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(tokenizer))
      self._tokenizer.no_truncation()  # a text is as long as it is
      self._tokenizer.no_padding()
      added = self._tokenizer.encode("").ids  # what it would add to any text
    self.start_id = added[0] if len(added) == 1 else None
    ids = [*self._tokenizer.get_vocab().values(), *added]
    self.vocab_size = 1 + max(ids, default=-1)
    if self.vocab_size > tokenizer_limits.MOST_TOKENS:
      raise InputError(
        f"token id is {self.vocab_size - 1}: must be below"
        f" {tokenizer_limits.MOST_TOKENS}"
      )
    self.end_of_text_id = self._tokenizer.token_to_id(self.END_OF_TEXT)

  @classmethod
  def train(cls, texts: Iterable[str], vocab_size: int) -> "BPETokenizer":
    """The vocab_size - 257 most frequent pairs, on top of bytes and the end of text."""
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
      vocab_size=vocab_size,
      special_tokens=[cls.END_OF_TEXT],
      initial_alphabet=byte_level.alphabet(),
      show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return cls(json.loads(tokenizer.to_str()))

  def encode(self, text: str) -> list[int]:
    with _library_errors("text that has no tokens"):  # perhaps an unknown word
      # of a batch, since only that leaves out where in the text each token stands
      [fast] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
      return fast.ids

  def decode(self, ids: Sequence[int]) -> str:
    ids = [token_id for token_id in ids if token_id != self.start_id]
    with _library_errors("tokens that have no text"):
      return self._tokenizer.decode(ids, skip_special_tokens=False)

  def save(self, path: str) -> None:
    """Writes Hugging Face's tokenizer.json."""
    self._tokenizer.save(path)

  def state(self) -> dict:
    return {"tokenizer": json.loads(self._tokenizer.to_str())}


KINDS = {
  cls.kind: cls for cls in (WordTokenizer, CharTokenizer, ByteTokenizer, BPETokenizer)
}


def dumps(tokenizer: Tokenizer) -> str:
  """The tokenizer as JSON text."""
  return json.dumps({"kind": tokenizer.kind, **tokenizer.state()}, ensure_ascii=False)


def load(path: pathlib.Path) -> Tokenizer:
  """Reads what `dumps` wrote, or a tokenizer.json of Hugging Face's."""
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
