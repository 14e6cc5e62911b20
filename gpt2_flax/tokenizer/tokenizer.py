"""What every tokenizer offers: text to token ids, and back."""

import abc
from collections.abc import Sequence
from typing import ClassVar

from gpt2_flax.errors import InputError


class Tokenizer(abc.ABC):
  """What every tokenizer offers.

  Attributes:
    kind: the name it is saved under.
    vocab_size: ids are 0 .. vocab_size - 1.
    start_id: the token that every sequence begins with, or None. `encode` does not
      add it: it belongs to a sequence, not to its text.
    end_of_text_id: the token between documents, or None. A text may start after it.
    separator: what `decode` puts between tokens that are words.
  """

  kind: ClassVar[str]
  vocab_size: int
  start_id: int | None = None
  end_of_text_id: int | None = None
  separator: str = ""

  @abc.abstractmethod
  def encode(self, text: str) -> list[int]:
    """Token ids of a text; an `InputError` names what it cannot write."""

  @abc.abstractmethod
  def decode(self, ids: Sequence[int]) -> str:
    """The text of some token ids; a start token adds nothing to it."""

  def start(self, text: str) -> list[int]:
    """The ids that a text to be continued begins with."""
    prefix = [] if self.start_id is None else [self.start_id]
    if not prefix and not text and self.end_of_text_id is not None:
      prefix = [self.end_of_text_id]  # as after another document's end
    if not prefix and not text:
      raise InputError("the prompt is empty: must have at least one token")
    return prefix + self.encode(text)

  def token(self, token_id: int) -> str:
    """One token as it is shown to a person."""
    return "<s>" if token_id == self.start_id else self.decode([token_id])

  def require_known(self, vocab_size: int, where: object) -> None:
    """Raises an `InputError` where a model does not know all of these tokens.

    Args:
      vocab_size: of the model; more than there are tokens is a vocabulary filled up.
      where: whose they are, for the error.
    """
    if self.vocab_size > vocab_size:
      raise InputError(
        f"{where}: the tokenizer has {self.vocab_size} tokens, the model knows"
        f" {vocab_size}: must know all of them"
      )

  @abc.abstractmethod
  def state(self) -> dict:
    """What `__init__` needs to build this tokenizer again, as JSON values."""
