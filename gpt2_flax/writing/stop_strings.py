"""Strings that end a text, wherever its tokens begin and end."""

from collections.abc import Sequence

from gpt2_flax.errors import InputError


class StopStrings:
  """Finds where a text ends, and what of it may yet become a part of a stop string."""

  def __init__(self, strings: Sequence[str], separator: str = ""):
    """Strings that end a text.

    Args:
      strings: of any length, none empty.
      separator: what stands between two tokens, where tokens are words: there a stop
        string is one or more whole words.
    """
    if separator:
      words = [separator.join(string.split()) for string in strings]
      self._strings = [word and f"{separator}{word}{separator}" for word in words]
    else:
      self._strings = list(strings)
    self._separator = separator
    for string, given in zip(self._strings, strings, strict=True):
      if not string:
        raise InputError(f"stop is {given!r}: must have at least one character")

  def find(self, text: str) -> int | None:
    """Where the stop string begins that is complete first; None if none is.

    Of two that are complete with the same character, it is the longer one. So the text
    is the same, however many characters it grows by.
    """
    text = self._padded(text)
    starts = [(text.find(string), len(string)) for string in self._strings]
    ends = [(start + length, start) for start, length in starts if start >= 0]
    return max(0, min(ends)[1] - len(self._separator)) if ends else None

  def first_open(self, text: str) -> int:
    """Where the longest end of the text begins that is the beginning of a stop string.

    The length of the text where none is: then all of it can be shown.
    """
    padded = self._padded(text)
    at = min((_first_open(padded, string) for string in self._strings), default=None)
    return (
      len(text) if at is None else min(len(text), max(0, at - len(self._separator)))
    )

  def _padded(self, text: str) -> str:
    return f"{self._separator}{text}{self._separator}"


def _first_open(text: str, string: str) -> int:
  at = max(0, len(text) - len(string) + 1)
  while (at := text.find(string[0], at)) >= 0:
    if string.startswith(text[at:]):
      return at
    at += 1
  return len(text)
