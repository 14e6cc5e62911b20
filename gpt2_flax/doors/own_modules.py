"""Modules of the user's, imported because --import names them.

Nothing else imports one: a run's folder says what it needs, and a person decides.
"""

from collections.abc import Sequence
import importlib.util
import os
import pathlib
import sys

from gpt2_flax.errors import InputError


def import_own(names: Sequence[str]) -> None:
  """Imports each module, found as `python -m` finds it: in the current folder too.

  Args:
    names: a module's name, or the path of a .py file.

  Raises:
    InputError: there is no such module or file.
  """
  if names and os.getcwd() not in sys.path:
    sys.path.insert(0, os.getcwd())
  for name in names:
    try:
      if name.endswith(".py"):
        _import_file(name)
      else:
        importlib.import_module(name)
    except (ImportError, OSError) as error:
      raise InputError(f"--import={name}: {error}") from error


def _import_file(path: str) -> None:
  module_name = pathlib.Path(path).stem
  loader = importlib.machinery.SourceFileLoader(module_name, path)
  spec = importlib.util.spec_from_loader(module_name, loader)
  assert spec is not None  # there is a loader
  module = importlib.util.module_from_spec(spec)
  sys.modules.setdefault(module_name, module)  # where its classes are looked up
  loader.exec_module(module)
