"""A text as its tokens come."""

from collections.abc import Sequence
from typing import Literal

from gpt2_flax.tokenizer import Tokenizer
from gpt2_flax.writing.stop_strings import StopStrings

FinishReason = Literal["stop", "length"]


class GrowingText:
  """What follows a prompt, decoded token by token, until a stop string or token.

  A text ends before its stop string, and before its stop token, as with OpenAI's
  completions: neither is a part of it. What may become a part of a stop string is held
  back, and so is a character of which not all bytes are there.

  Attributes:
    text: all that was shown.
    finish_reason: None while it grows; "stop" after a stop string or token, "length"
      where there was no room for more.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    stop: StopStrings,
    stop_ids: Sequence[int] = (),
  ):
    self.text = ""
    self.finish_reason: FinishReason | None = None
    self._tokenizer = tokenizer
    self._stop = stop
    self._stop_ids = frozenset(stop_ids)
    self._tokens = list(prompt)
    # Tokens are decoded after some that are decoded already, since what a token is as
    # text may depend on the one before.
    self._context, self._decoded = 0, len(prompt)
    self._taken = 0  # characters of what is not decoded to its end
    self._held = ""

  def add(self, tokens: Sequence[int]) -> str:
    """Takes the next tokens; what may be shown now."""
    if self.finish_reason is not None or not tokens:
      return ""
    stopped = tokens[-1] in self._stop_ids
    self._tokens += tokens[:-1] if stopped else tokens
    new = self._new_text()
    whole = new.rstrip("\ufffd")
    self._held += whole[self._taken :]
    self._taken = len(whole)
    if whole == new:
      self._context, self._decoded = self._decoded, len(self._tokens)
      self._taken = 0
    if not self._cut() and stopped:
      return self.finish("stop")
    return self._show(self._stop.first_open(self._held))

  def finish(self, reason: FinishReason = "length") -> str:
    """Says that no more tokens will come; the rest, to be shown."""
    if self.finish_reason is None:
      self._held += self._new_text()[self._taken :]
      if not self._cut():
        self.finish_reason = reason
    return self._show(len(self._held))

  def _new_text(self) -> str:
    """Of the tokens that are not decoded yet."""
    before = self._tokenizer.decode(self._tokens[self._context : self._decoded])
    return self._tokenizer.decode(self._tokens[self._context :])[len(before) :]

  def _cut(self) -> bool:
    """Whether a stop string is there; if so, it ends the text."""
    at = self._stop.find(self._held)
    if at is None:
      return False
    self._held = self._held[:at]
    self.finish_reason = "stop"
    return True

  def _show(self, number: int) -> str:
    """The next characters that were held back."""
    if self.finish_reason is not None:
      number = len(self._held)
    shown, self._held = self._held[:number], self._held[number:]
    self.text += shown
    return shown
