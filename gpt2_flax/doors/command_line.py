"""What the doors share: flags with one-line errors, and exit codes that mean something.

0 done; 1 the run could not go on; 2 bad input, nothing written; 128 + n ended by signal
n, with nothing lost. (A shell also says 128 + n for a process that a signal killed.)
"""

from collections.abc import Callable, Sequence
import contextlib
import os
import pathlib
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags, ConfigDict

from gpt2_flax.doors.own_modules import import_own
from gpt2_flax.errors import InputError, RunError, unknown_name
from gpt2_flax.files.atomic import remove_unfinished
from gpt2_flax.files.cache import cache_folder
from gpt2_flax.training import default_config

flags.disclaim_key_flags()  # what is defined here belongs to the door that asks for it

_VALUE_NAMES = {int: "an integer", float: "a number", bool: "true or false"}


def run(main: Callable[[], int]) -> NoReturn:
  """Parses the flags, calls main, and exits with what it returns.

  Args:
    main: a door's; raises InputError for bad input, RunError for a run that cannot go
      on. --help shows the docstring and the flags of its module first.
  """
  leave_on_signals()
  door = sys.modules[main.__module__]
  sys.modules["__main__"].__doc__ = door.__doc__
  for flag in flags.FLAGS.get_key_flags_for_module(door):
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  if "config" in flags.FLAGS:
    sys.argv[1:] = _config_first(sys.argv[1:])
  logging.set_verbosity(logging.WARNING)

  def begin(_) -> int:
    keep_compiled_programs()
    return guarded(main)

  app.run(begin, argv=sys.argv, flags_parser=_parse_flags)


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
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def define_config_flag() -> None:
  """--config and --config.key, of the door that calls this."""
  # No default: the flag would load that file while it is being defined, before errors
  # in it can be caught.
  config_flags.DEFINE_config_file(
    "config", None, "The experiment, a file; default: the toy."
  )


def _config_first(args: list[str]) -> list[str]:
  """The same, with --config=FILE before every --config.key=value, which change it."""
  path = "" if args[-1:] in (["--config"], ["-config"]) else default_config.__file__
  rest = []
  for i, arg in enumerate(args):
    if arg.startswith(("--config=", "-config=")):
      path = arg.partition("=")[2]
    elif i > 0 and args[i - 1] in ("--config", "-config"):
      path = arg
    elif arg not in ("--config", "-config"):
      rest.append(arg)
  return [f"--config={path}", *rest]


def config_name() -> str:
  """What --config names, fit for a folder: configs/gpt2.py:small -> gpt2-small."""
  path = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"]))
  if path == pathlib.Path(default_config.__file__):
    return "toy"
  return path.name.replace(".py", "").replace(":", "-")


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
  except BrokenPipeError:  # the reader has closed the pipe, as `| head` does
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)
  except InputError as error:
    _fail(str(error), 2)
  except RunError as error:
    _fail(str(error), 1)


def _fail(message: str, code: int) -> NoReturn:
  print(f"error: {message}", file=sys.stderr, flush=True)
  sys.exit(code)


def _parse_flags(argv: Sequence[str]) -> list[str]:
  try:
    positional = flags.FLAGS(argv)
    if "config" in flags.FLAGS:
      _checked(flags.FLAGS.config)
  except (
    flags.Error,  # an unknown flag, or a value that does not fit
    *(ImportError, OSError),  # of --config=FILE
    *(LookupError, AttributeError, TypeError, ValueError),  # of --config.key=value
  ) as error:
    _fail(_explain(argv, error), 2)
  if len(positional) > 1:
    _fail(f"unexpected argument {positional[1]!r}: only --flags are taken", 2)
  return positional


def _explain(argv: Sequence[str], error: Exception) -> str:
  """The first thing that is wrong with the flags, in this project's words."""
  takes_config, config = "config" in flags.FLAGS, ConfigDict()
  try:
    for arg in argv[1:]:
      name, _, value = arg.lstrip("-").partition("=")
      if takes_config and name == "config":
        config = _load_config(value)
      elif takes_config and name.startswith("config."):
        _check_override(config, name, value)
      elif name.removeprefix("no") not in flags.FLAGS and name not in flags.FLAGS:
        ours = flags.FLAGS.get_key_flags_for_module(argv[0])
        raise unknown_name("flag", f"--{name}", [f"--{flag.name}" for flag in ours])
  except InputError as explained:
    return str(explained)
  return str(error).strip().splitlines()[0]


def _load_config(path: str) -> ConfigDict:
  try:
    return _checked(flags.FLAGS["config"].parser.parse(path))
  except OSError as error:
    raise InputError(f"--config={path}: no such file") from error
  except TypeError as error:
    file, _, argument = path.partition(":")
    raise InputError(f"--config={path}: {file} takes no {argument!r}") from error
  except ImportError as error:
    raise InputError(f"--config={path}: {error}") from error
  except ValueError as error:
    # raised anew by the parser, with the file's own error as context
    raise InputError(f"--config={path}: {error.__context__ or error}") from error


def _checked(config: Any) -> ConfigDict:
  """What get_config returned; raises OSError for a file that could not be read."""
  if hasattr(config, "keys") and isinstance(config, ConfigDict):
    return config
  raise InputError("get_config must return a ConfigDict")


def _check_override(config: ConfigDict, name: str, value: str) -> None:
  """Raises where --config.a.b=value names no key, or not its type."""
  node, so_far = config, "config"
  for key in name.split(".")[1:]:
    if not isinstance(node, ConfigDict):
      raise InputError(f"--{name}: {so_far} is a value, not a section")
    if key not in node:
      raise unknown_name(f"key in {so_far}", key, node)
    node, so_far = node[key], f"{so_far}.{key}"
  if isinstance(node, ConfigDict):
    raise InputError(f"--{name} is a section: set one of {', '.join(node)}")
  if not value:
    raise InputError(f"--{name} has no value: write --{name}=VALUE")
  try:
    type(node)(value)
  except ValueError as error:
    kind = _VALUE_NAMES.get(type(node), f"a {type(node).__name__}")
    raise InputError(f"{name} is {value!r}: must be {kind}") from error
