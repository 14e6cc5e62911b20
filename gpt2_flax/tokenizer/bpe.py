"""Byte pairs: frequent neighbours become one token, as in GPT-2."""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import json
from typing import Any

import tokenizers

from gpt2_flax.errors import InputError, unknown_name
from gpt2_flax.tokenizer import limits
from gpt2_flax.tokenizer.hub_files import BESIDE, CONFIG, END_OF_TEXT, special_token
from gpt2_flax.tokenizer.tokenizer import Tokenizer


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

  Attributes:
    beside: what the files beside tokenizer.json say, by their names: see `hub_files`.
  """

  kind = "bpe"

  def __init__(self, tokenizer: dict, beside: dict[str, dict[str, Any]] | None = None):
    if not isinstance(tokenizer, dict):
      raise InputError("not a tokenizer.json: must be a JSON object")
    self.beside = {} if beside is None else beside
    if not isinstance(self.beside, dict) or not all(
      name in (*BESIDE, CONFIG) and isinstance(said, dict)
      for name, said in self.beside.items()
    ):
      raise InputError(f"beside: must be what is in {', '.join(BESIDE)} and {CONFIG}")
    limits.check(tokenizer)
    with _library_errors("not a tokenizer.json"):
      self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(tokenizer))
      self._tokenizer.no_truncation()  # a long text keeps all its tokens
      self._tokenizer.no_padding()
      added = self._tokenizer.encode("").ids  # what it would add to any text
    self.start_id = added[0] if len(added) == 1 else None
    vocab = self._tokenizer.get_vocab()
    self.vocab_size = 1 + max([*vocab.values(), *added], default=-1)
    if self.vocab_size > limits.MOST_TOKENS:
      raise InputError(
        f"token id is {self.vocab_size - 1}: must be below {limits.MOST_TOKENS}"
      )
    tokens: dict[int, str] = {}
    for token, token_id in vocab.items():
      if (other := tokens.setdefault(token_id, token)) != token:
        both = " and ".join(map(repr, sorted((token, other))))
        raise InputError(f"{both} have the id {token_id}: must be one token")
    end_of_text = special_token(self.beside, "eos_token") or END_OF_TEXT
    self.end_of_text_id = self._tokenizer.token_to_id(end_of_text)

  @classmethod
  def train(cls, texts: Iterable[str], vocab_size: int) -> "BPETokenizer":
    """The vocab_size - 257 most frequent pairs, on top of bytes and the end of text."""
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
      vocab_size=vocab_size,
      special_tokens=[END_OF_TEXT],
      initial_alphabet=byte_level.alphabet(),
      show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return cls(json.loads(tokenizer.to_str()))

  def encode(self, text: str) -> list[int]:
    try:
      return self._ids(text)
    except InputError as error:
      word = self._unknown_word(text)
      if word is None:
        raise
      raise unknown_name("word", word, self._tokenizer.get_vocab()) from error

  def _ids(self, text: str) -> list[int]:
    with _library_errors("text that has no tokens"):
      # a batch of one, since only this function does not compute offsets in the text
      [fast] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
      return fast.ids

  def _unknown_word(self, text: str) -> str | None:
    """The first word that has no tokens by itself, which the library does not name."""
    if (cut := self._tokenizer.pre_tokenizer) is None:
      return None
    with _library_errors("text that has no tokens"):
      words = cut.pre_tokenize_str(text)
    for word, _ in words:
      try:
        self._ids(word)
      except InputError:
        return word
    return None

  def decode(self, ids: Sequence[int]) -> str:
    ids = [token_id for token_id in ids if token_id != self.start_id]
    with _library_errors("tokens that have no text"):
      return self._tokenizer.decode(ids, skip_special_tokens=False)

  def save(self, path: str) -> None:
    """Writes Hugging Face's tokenizer.json."""
    self._tokenizer.save(path)

  def state(self) -> dict:
    state = {"tokenizer": json.loads(self._tokenizer.to_str())}
    return state | ({"beside": self.beside} if self.beside else {})
