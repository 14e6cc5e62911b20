"""What the doors share: flags with one-line errors, and exit codes that mean something.

0 done; 1 the run could not go on; 2 bad input, nothing written; 128 + n stopped by
signal n, state saved.
"""

from collections.abc import Callable, Sequence
import sys
from typing import NoReturn

from absl import app, flags, logging

from gpt2_flax.errors import InputError, RunError, unknown_name


def run(main: Callable[[], int]) -> None:
  """Parses the flags, calls main, and exits with what it returns."""
  logging.set_verbosity(logging.WARNING)
  app.run(lambda _: _guarded(main), flags_parser=_parse_flags)


def _guarded(main: Callable[[], int]) -> int:
  try:
    return main()
  except InputError as error:
    _fail(error, 2)
  except RunError as error:
    _fail(error, 1)


def _fail(error: Exception, code: int) -> NoReturn:
  print(f"error: {error}", file=sys.stderr, flush=True)
  sys.exit(code)


def _parse_flags(argv: Sequence[str]) -> list[str]:
  try:
    positional = flags.FLAGS(argv)
    if len(positional) > 1:
      raise InputError(f"unexpected argument {positional[1]!r}: only --flags are taken")
    return positional
  except InputError as error:
    _fail(error, 2)
  except flags.UnrecognizedFlagError as error:
    known = [name for name in flags.FLAGS if flags.FLAGS[name].module == argv[0]]
    _fail(unknown_name("flag", f"--{error.flagname}", known or flags.FLAGS), 2)
  except (flags.Error, KeyError, AttributeError, TypeError, ImportError, OSError) as e:
    _fail(_config_error(argv, e), 2)


def _config_error(argv: Sequence[str], error: Exception) -> Exception:
  """What is wrong with the --config.key=value flags, said in this project's words."""
  return error
