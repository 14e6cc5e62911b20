"""Two exceptions that mean "not our bug", each printed as one line."""

from collections.abc import Collection, Iterable, Sequence
import difflib
import errno
import os
import re

from gpt2_flax.terminal import one_line

MOST_LISTED = 100  # names that one line of an error gives at most
# The same input may work the next time
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
MOST_COMPARED = 1_000_000  # letters times names; with more no near name is looked for


class _OneLine:
  """Messages quote what files say, so they become one line without control codes."""

  def __str__(self) -> str:
    return one_line(super().__str__())


class InputError(_OneLine, ValueError):
  """Input that cannot be used: names the field, the value and what is allowed.

  The command-line doors print it as one line and exit with code 2. Everything
  else that is raised is a defect and keeps its traceback.
  """


def unknown_name(
  what: str, name: str, allowed: Iterable[str], near: Sequence[str] | None = None
) -> InputError:
  """An `InputError` for `name`, with what was perhaps meant and what is allowed.

  Args:
    near: what was perhaps meant; None for the nearest allowed name, if one is near.
  """
  allowed = sorted(allowed)
  if near is None:
    found = nearest(name, allowed)
    near = [found] if found else []
  hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
  listed = ", ".join(allowed[:MOST_LISTED])
  if len(allowed) > MOST_LISTED:
    listed += f", ... ({len(allowed):,} in all)"
  return InputError(f"unknown {what} {name!r}: {hint}allowed: {listed}")


def nearest(name: str, allowed: Collection[str]) -> str | None:
  """The allowed name that `name` comes nearest to: but for case the same, or alike."""
  if len(name) * len(allowed) > MOST_COMPARED:
    return None
  same = [other for other in allowed if other.lower() == name.lower()]
  return next(iter(same or difflib.get_close_matches(name, allowed, n=1)), None)


class RunError(_OneLine, RuntimeError):
  """A run that cannot go on, through no fault of its input: one line, exit code 1."""


def cannot_write(where: object, error: OSError) -> InputError | RunError:
  """A `RunError` where the disk is full or fails; an `InputError` for a wrong place."""
  kind = RunError if error.errno in _DISK_ERRORS else InputError
  return kind(f"{where} cannot be written: {error.strerror or error}")


def os_error(error: Exception) -> OSError | None:
  """The system's error behind one of Python, Rust or tensorstore, or None."""
  if isinstance(error, OSError):
    return error
  number = re.search(r"\bos[ _]error(?: |_code=')(\d+)", str(error))
  return number and OSError(int(number[1]), os.strerror(int(number[1])))
