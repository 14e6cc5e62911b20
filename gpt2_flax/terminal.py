"""Text that others wrote, made fit to be shown on a terminal.

Terminals obey what they print: an escape character in a token or a file name could move
the cursor, change the title, or hide what is really there.
"""

MOST_CHARACTERS = 2000  # of one line


def one_line(text: str) -> str:
  """Characters that cannot be printed become escapes; a long text keeps both ends."""
  if len(text) > MOST_CHARACTERS:
    half = MOST_CHARACTERS // 2
    text = f"{text[:half]} ... {text[-half:]}"
  return "".join(c if c.isprintable() else _escape(c) for c in text)


def lines(text: str) -> str:
  """Line ends and tabs stay; other control characters become escapes."""
  return "".join(c if c in "\n\t" or not _is_control(c) else _escape(c) for c in text)


def _is_control(character: str) -> bool:
  return character < " " or "\x7f" <= character < "\xa0"


def _escape(character: str) -> str:
  return character.encode("unicode_escape").decode("ascii")
