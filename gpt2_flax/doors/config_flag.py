"""--config=FILE and --config.key=value: an experiment and what is changed in it.

A wrong file, key or value ends in one line that says what was perhaps meant, and --help
lists every key with the comment that its file has for it.
"""

from collections.abc import Iterable, Iterator, Mapping
import pathlib
import sys
import tokenize
from typing import Any

from absl import flags
from ml_collections import config_flags, ConfigDict

from gpt2_flax.errors import InputError, nearest, unknown_name
from gpt2_flax.training import default_config

flags.disclaim_key_flags()  # what is defined here belongs to the door that asks for it

_VALUE_NAMES = {int: "an integer", float: "a number", bool: "true or false"}


def define_config_flag() -> None:
  """--config and --config.key, of the door that calls this."""
  # No default: the flag would load that file while it is being defined, before errors
  # in it can be caught.
  config_flags.DEFINE_config_file(
    "config", None, "The experiment, a file; default: the toy."
  )


def config_first(args: list[str]) -> list[str]:
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


def changed(texts: Mapping[str, str]) -> tuple[ConfigDict, dict[str, Any]]:
  """The config that the flags describe with some keys changed, and their new values.

  Args:
    texts: values by key, as on the command line. The key "config" stands for the
      argument of --config's file; then --config.key=value counts all the same.
  """
  flag = flags.FLAGS["config"]
  config = flags.FLAGS.config.copy_and_resolve_references()
  over: dict[str, Any] = {}
  for key in sorted(texts, key=lambda key: key != "config"):
    text = texts[key]
    try:
      if key == "config":
        file = config_flags.get_config_filename(flag).partition(":")[0]
        config = load_config(f"{file}:{text}")
        config.update_from_flattened_dict(config_flags.get_override_values(flag))
        over[key] = int(text) if text.isdecimal() else text
      else:
        over[key] = check_override(config, f"config.{key}", text)
        config.update_from_flattened_dict({key: over[key]})
    except InputError as error:
      raise InputError(f"--over={key}={text}: {error}") from error
  return config, {key: over[key] for key in texts}


# ---- What is wrong -------------------------------------------------------------------


def load_config(path: str) -> ConfigDict:
  """The config of a file, or an InputError that says why there is none."""
  try:
    return checked(flags.FLAGS["config"].parser.parse(path))
  except OSError as error:
    raise _no_such_file(path) from error
  except TypeError as error:
    file, _, argument = path.partition(":")
    raise InputError(f"--config={path}: {file} takes no {argument!r}") from error
  except ImportError as error:
    raise InputError(f"--config={path}: {error}") from error
  except ValueError as error:
    # raised anew by the parser, with the file's own error as context
    raise InputError(f"--config={path}: {error.__context__ or error}") from error


def checked(config: Any) -> ConfigDict:
  """What get_config returned; raises OSError for a file that could not be read."""
  if hasattr(config, "keys") and isinstance(config, ConfigDict):
    return config
  raise InputError("get_config must return a ConfigDict")


def _no_such_file(path: str) -> InputError:
  name, colon, argument = path.partition(":")
  files = _files()
  message = f"--config={path}: no such file"
  if not files:
    return InputError(message)
  near = nearest(pathlib.Path(name).stem, files)
  hint = f"did you mean {files[near]}{colon}{argument}? " if near else ""
  return InputError(f"{message}: {hint}there are {', '.join(files.values())}")


def _files() -> dict[str, str]:
  """The configs in the current folder and in its configs/, by their short names."""
  paths = [*pathlib.Path().glob("*.py"), *pathlib.Path("configs").glob("*.py")]
  texts = {path: path.read_text("utf-8", "replace") for path in sorted(paths)}
  return {
    path.stem: str(path)
    for path, text in texts.items()
    if "def get_config" in text or "import get_config" in text
  }


def check_override(config: ConfigDict, name: str, value: str) -> Any:
  """The value of --config.a.b=value; raises where it names no key, or not its type."""
  node, so_far = config, "config"
  for key in name.split(".")[1:]:
    if not isinstance(node, ConfigDict):
      raise InputError(f"--{name}: {so_far} is a value, not a section")
    if key not in node:
      near = meant(name.removeprefix("config."), (), config)
      raise unknown_name(f"key in {so_far}", key, node, near)
    node, so_far = node[key], f"{so_far}.{key}"
  if isinstance(node, ConfigDict):
    raise InputError(f"--{name} is a section: set one of {', '.join(node)}")
  if not value:
    raise InputError(f"--{name} has no value: write --{name}=VALUE")
  try:
    if isinstance(node, bool):
      return flags.BooleanParser().parse(value)
    return type(node)(value)
  except ValueError as error:
    kind = _VALUE_NAMES.get(type(node), f"a {type(node).__name__}")
    raise InputError(f"{name} is {value!r}: must be {kind}") from error


def meant(name: str, others: Iterable[str], config: ConfigDict) -> list[str]:
  """The flags that a name may stand for: num_steps is --config.train.num_steps.

  Args:
    others: the flags that there are beside those of the config, without their dashes.
  """
  section, _, leaf = name.rpartition(".")
  named = {other: [f"--{other}"] for other in others}
  for key, _ in _keys(config):
    named.setdefault(key.rpartition(".")[2], []).append(f"--config.{key}")
  found = named.get(nearest(leaf, named) or "", [])
  return [flag for flag in found if f".{section}." in flag] or found


def _keys(config: ConfigDict, section: str = "") -> Iterator[tuple[str, Any]]:
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      yield from _keys(value, f"{section}{key}.")
    else:
      yield f"{section}{key}", value


# ---- What there is -------------------------------------------------------------------


def describe() -> str:
  """Every key of the config as --config.key=value, with its comment; for --help."""
  path = config_flags.get_config_filename(flags.FLAGS["config"])
  comments = _comments(pathlib.Path(path.partition(":")[0]).resolve())
  lines = ["\nthe config's keys, as they are now:\n"]
  for key, value in _keys(flags.FLAGS.config):
    lines.append(f"  {f'--config.{key}={value}':40}  {comments.get(key, '')}".rstrip())
  if files := _files():
    lines.append(f"\nthe configs here: {', '.join(files.values())}")
  return "\n".join(lines)


def _comments(path: pathlib.Path) -> dict[str, str]:
  """What is said of each key in this file, those it imports, and the default."""
  imported = [getattr(module, "__file__", None) for module in sys.modules.values()]
  beside = [
    file for file in imported if file and pathlib.Path(file).parent == path.parent
  ]
  found = {}
  for file in (*beside, path, default_config.__file__):  # the last has the last word
    with tokenize.open(file) as source:
      for token in tokenize.generate_tokens(source.readline):
        key, is_set, _ = token.line.strip().removeprefix("config.").partition(" = ")
        if token.type == tokenize.COMMENT and is_set:
          found[key] = token.string.lstrip("# ")
  return found
