"""What a config chooses by name: ours, and yours.

    HEADS.add("sink", SinkHead)      and --config.model.attention=sink chooses it

A module that adds parts is imported because a person asks for it: by `import`, by a
config file, or by --import=MODULE on the command line. A run's folder names the modules
that it needs, but no folder ever causes an import.
"""

from collections.abc import Iterator, Mapping
import importlib.machinery
import inspect
import os
import sys
from typing import Any

from gpt2_flax.errors import InputError, unknown_name

PACKAGE = __name__.partition(".")[0]


class Registry(Mapping[str, Any]):
  """Parts by name."""

  def __init__(self, field: str, ours: Mapping[str, Any]):
    self.field = field
    self._parts = dict(ours)

  def __getitem__(self, name: str) -> Any:
    if name not in self._parts:
      raise unknown_name(self.field, name, self._parts)
    return self._parts[name]

  def __contains__(self, name: object) -> bool:
    return name in self._parts

  def __iter__(self) -> Iterator[str]:
    return iter(self._parts)

  def __len__(self) -> int:
    return len(self._parts)

  def add(self, name: str, part: Any) -> Any:
    """Adds a part, and returns it; the same part may come again, from a reload.

    Raises:
      InputError: another part has this name.
    """
    known = self._parts.get(name)
    if known is not None and _source(known) != _source(part):
      raise InputError(
        f"{self.field} {name!r} is there already: {origin(known)}; choose another name"
        f" for {origin(part)}"
      )
    self._parts[name] = part
    return part

  def needs(self, name: str) -> str:
    """`origin` of a part that is not this package's own; else ""."""
    where = origin(self[name])
    return "" if where.startswith(f"{PACKAGE}.") else where

  def check_imported(self, name: Any, where: str | None) -> None:
    """Raises an InputError for a part of a run that has not been added.

    Args:
      where: what `needs` said when the run was made, as its folder has it; None if it
        said nothing.
    """
    if where is None or not isinstance(name, str) or name in self:
      return
    module = where.partition(":")[0]
    raise InputError(
      f"{self.field} is {name!r}, which is not imported: its folder says that {module}"
      f" has it; if you trust that code, add --import={module}"
    )


def origin(part: Any) -> str:
  """Where a class or a function comes from: "my_lab.heads:SinkHead".

  What stands before the colon can be given to --import: a module's name, or the path of
  a file where Python does not find it by name (a config file, a script).
  """
  part = getattr(part, "func", part)  # of a functools.partial
  if not hasattr(part, "__qualname__"):  # an object: its class says where it is from
    part = type(part)
  file, module = _file(part), part.__module__
  where = module if file is None or _found_by_name(module, file) else file
  return f"{where}:{part.__qualname__}"


def _source(part: Any) -> tuple[str, str]:
  """The same for a part that was loaded twice, under two names of its module."""
  return _file(part) or part.__module__, part.__qualname__


def _file(part: Any) -> str | None:
  """The absolute path of the source of a class or a function; None if it has none."""
  functions = [part]
  if isinstance(part, type):  # a class knows its module only, its methods their file
    functions = [f for f in vars(part).values() if getattr(f, "__qualname__", "")]
    functions = [f for f in functions if f.__qualname__.startswith(part.__qualname__)]
  for function in functions:
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code and os.path.isfile(code.co_filename):
      return os.path.abspath(code.co_filename)
  file = getattr(sys.modules.get(part.__module__), "__file__", None)
  return file and os.path.abspath(file)


def _found_by_name(module: str, file: str) -> bool:
  """Whether `import module` would read this file, in another process too."""
  parent, _, _ = module.rpartition(".")
  folders = getattr(sys.modules.get(parent), "__path__", None) if parent else None
  spec = importlib.machinery.PathFinder.find_spec(module, folders)
  return (
    spec is not None
    and spec.origin is not None
    and (os.path.abspath(spec.origin) == file)
  )
