"""A person at a terminal and a model write a text in turn."""

import contextlib
import io
import signal
import sys
from types import FrameType
from typing import Any

from gpt2_flax import terminal
from gpt2_flax.errors import InputError


def converse(conversation: Any, num_tokens: int) -> None:
  """Takes a line, shows what the model makes of it, and so on, until Ctrl-D.

  Ctrl-C ends the model's turn, or clears the person's line.

  Args:
    conversation: a `writing.conversation.Conversation`.
    num_tokens: in each turn of the model, at most.
  """
  at_terminal = sys.stdin.isatty()
  if at_terminal:
    import readline  # noqa: F401  input() then edits lines, and knows earlier ones
  if isinstance(sys.stdin, io.TextIOWrapper):  # else a wrong byte would end it
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
  is_reading = interrupted = False

  def interrupt(number: int, frame: FrameType | None) -> None:
    nonlocal interrupted
    del number, frame
    interrupted = True
    if is_reading:
      raise KeyboardInterrupt

  before = signal.signal(signal.SIGINT, interrupt)
  try:
    while True:
      try:
        is_reading = True
        line = input("> " if at_terminal else "")
        is_reading = False
      except KeyboardInterrupt:
        print()
        continue
      except EOFError:
        break
      finally:
        is_reading = False
      interrupted = False
      try:
        if not _is_unicode(line):
          raise InputError("the line is not UTF-8")
        conversation.say(line)
      except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        continue
      with contextlib.closing(conversation.write(num_tokens)) as pieces:
        for piece in pieces:
          piece = terminal.lines(piece) if sys.stdout.isatty() else piece
          print(piece, end="", flush=True)
          if interrupted:
            break
      print(flush=True)
  finally:
    signal.signal(signal.SIGINT, before)
  if at_terminal:
    print()


def _is_unicode(text: str) -> bool:
  """Whether each character is one, none a byte that stands for itself."""
  return not any("\ud800" <= character <= "\udfff" for character in text)
