"""What the doors share: flags with one-line errors, and exit codes that mean something.

0 done; 1 the run could not go on; 2 bad input, nothing written; 128 + n ended by signal
n, with nothing lost. (A shell also says 128 + n for a process that a signal killed.)
"""

from collections.abc import Callable, Sequence
import contextlib
import gc
import os
import pathlib
import re
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict

from gpt2_flax.doors import config_flag
from gpt2_flax.doors.own_modules import import_own
from gpt2_flax.errors import InputError, RunError, unknown_name
from gpt2_flax.files.atomic import remove_unfinished
from gpt2_flax.files.cache import cache_folder

flags.disclaim_key_flags()  # what is defined here belongs to the door that asks for it


def run(main: Callable[[], int]) -> NoReturn:
  """Parses the flags, calls main, and exits with what it returns.

  Args:
    main: a door's; raises InputError for bad input, RunError for a run that cannot go
      on. --help shows the docstring and the flags of its module first.
  """
  leave_on_signals()
  collect_seldom()
  door = sys.modules[main.__module__]
  sys.modules["__main__"].__doc__ = door.__doc__
  for flag in flags.FLAGS.get_key_flags_for_module(door):
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  if "config" in flags.FLAGS:
    sys.argv[1:] = config_flag.config_first(sys.argv[1:])
  if {"-h", "--help"} & set(sys.argv):  # last, so that it tells of the other flags
    sys.argv[1:] = [arg for arg in sys.argv[1:] if arg not in ("-h", "--help")]
    sys.argv.append("--help")
  logging.set_verbosity(logging.WARNING)

  def begin(_) -> int:
    keep_compiled_programs()
    return guarded(main)

  app.run(begin, argv=sys.argv, flags_parser=_parse_flags)


def collect_seldom() -> None:
  """Looks for garbage less often: JAX makes objects by the million, and keeps them."""
  gc.set_threshold(100_000, 50, 50)


def leave_on_signals(on_the_spot: bool = False) -> None:
  """From now on SIGTERM and Ctrl-C end the process, without a traceback.

  Args:
    on_the_spot: even while compiling, which Python code cannot interrupt. Else
      half-written files are removed first.
  """
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_DFL if on_the_spot else _leave)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
  del frame
  remove_unfinished()
  with contextlib.suppress(Exception):  # the signal may have interrupted a flush
    sys.stdout.flush()
  os._exit(128 + number)  # an exception may be swallowed by an import under way


def keep_compiled_programs() -> None:
  """Compiled programs go to the user's cache, so that a second run starts at once.

  JAX's own environment variables win: JAX_COMPILATION_CACHE_DIR for another folder,
  JAX_ENABLE_COMPILATION_CACHE=false for none.
  """
  import jax  # slow: after the flags

  if jax.config.values["jax_compilation_cache_dir"] is None:
    folder = cache_folder() / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def define_model_flags() -> None:
  """--workdir and --pretrained, of which `load_model` wants exactly one.

  They are the flags of the door that calls this.
  """
  flags.DEFINE_string("workdir", None, "A run: what train.py wrote.")
  flags.DEFINE_string(
    "pretrained", None, "Weights: a folder in Hugging Face's layout, or a hub id."
  )
  flags.DEFINE_integer(
    "step", None, "Of a run: a step that is kept; default the newest."
  )
  define_import_flag()


def define_import_flag() -> flags.FlagHolder:
  """--import, of the door that calls this."""
  return flags.DEFINE_multi_string(
    "import",
    [],
    "A module of yours, or the path of its file, to import first: it adds heads,"
    " datasets or tokenizers. May be given several times.",
  )


def load_model() -> tuple[Any, Any, Any]:
  """The model, params and tokenizer that --workdir or --pretrained names."""
  import_own(flags.FLAGS["import"].value or [])
  workdir, pretrained_name = flags.FLAGS.workdir, flags.FLAGS.pretrained
  if bool(workdir) == bool(pretrained_name):
    raise InputError("give one of --workdir (a run) and --pretrained (weights)")
  from gpt2_flax.training.source import load, load_run

  if workdir:
    return load_run(pathlib.Path(workdir), flags.FLAGS.step)
  return load(pretrained_name, flags.FLAGS.step)


def guarded(main: Callable[[], int]) -> int:
  """What main returns; an InputError or a RunError ends the process with its line."""
  try:
    code = main()
    sys.stdout.flush()
    return code
  except BrokenPipeError:
    _nobody_reads()
  except InputError as error:
    _fail(str(error), 2)
  except RunError as error:
    _fail(str(error), 1)


def _nobody_reads() -> NoReturn:
  """The end where the reader has closed the pipe, as `| head` does."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  sys.exit(128 + signal.SIGPIPE)


def _fail(message: str, code: int) -> NoReturn:
  print(f"error: {message}", file=sys.stderr, flush=True)
  sys.exit(code)


def _parse_flags(argv: Sequence[str]) -> list[str]:
  try:
    positional = _parsed_or_help(argv)
    if "config" in flags.FLAGS:
      config_flag.checked(flags.FLAGS.config)
  except BrokenPipeError:
    _nobody_reads()
  except (
    flags.Error,  # an unknown flag, or a value that does not fit
    *(ImportError, OSError),  # of --config=FILE
    *(LookupError, AttributeError, TypeError, ValueError),  # of --config.key=value
  ) as error:
    _fail(_explain(argv, error), 2)
  if len(positional) > 1:
    _fail(f"unexpected argument {positional[1]!r}: only --flags are taken", 2)
  return positional


def _parsed_or_help(argv: Sequence[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except SystemExit:  # after --help, with a code that says it went wrong
    if "config" in flags.FLAGS:
      print(config_flag.describe())
    sys.stdout.flush()
    sys.exit(0)


def _explain(argv: Sequence[str], error: Exception) -> str:
  """The first thing that is wrong with the flags, in this project's words."""
  takes_config, config = "config" in flags.FLAGS, ConfigDict()
  try:
    for arg in argv[1:]:
      if not arg.startswith("-"):  # the value of the flag before it
        continue
      name, _, value = arg.lstrip("-").partition("=")
      if takes_config and name == "config":
        config = config_flag.load_config(value)
      elif takes_config and name.startswith("config."):
        config_flag.check_override(config, name, value)
      elif name.removeprefix("no") not in flags.FLAGS and name not in flags.FLAGS:
        key_flags = flags.FLAGS.get_key_flags_for_module(argv[0])
        ours = [flag.name for flag in key_flags]
        near = config_flag.meant(name, ours, config)
        listed = [*ours, "config.KEY"] if takes_config else ours
        raise unknown_name("flag", f"--{name}", [f"--{x}" for x in listed], near)
  except InputError as explained:
    return str(explained)
  said = str(error).strip().splitlines()[0]
  if given := re.match(r"flag (--(\w+)=.*): (invalid literal|could not convert)", said):
    return f"{given[1]}: must be {flags.FLAGS[given[2]].parser.syntactic_help}"
  return said
