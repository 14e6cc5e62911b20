"""The one exception that means "your input, not our bug"."""

from collections.abc import Iterable
import difflib

MOST_LISTED = 40  # names that one line of an error gives at most


class InputError(ValueError):
  """Input that cannot be used: names the field, the value and what is allowed.

  The command-line doors print it as one line and exit with code 2. Everything
  else that is raised is a defect and keeps its traceback.
  """


def unknown_name(what: str, name: str, allowed: Iterable[str]) -> InputError:
  """An `InputError` for `name`, with the nearest allowed name where one is near."""
  allowed = sorted(allowed)
  near = difflib.get_close_matches(name, allowed, n=1)
  hint = f"did you mean {near[0]!r}? " if near else ""
  listed = ", ".join(allowed[:MOST_LISTED]) + (", ..." * (len(allowed) > MOST_LISTED))
  return InputError(f"unknown {what} {name!r}: {hint}allowed: {listed}")


class RunError(RuntimeError):
  """A run that cannot go on, through no fault of its input: one line, exit code 1."""
