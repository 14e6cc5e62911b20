"""gpt2-flax DOOR --flags, or python -m gpt2_flax DOOR --flags: opens a door.

    gpt2-flax train --config=mine.py
    gpt2-flax sample --help

It does what `python train.py` and the like do in a checkout.
"""

import ast
import importlib
import pathlib
import re
import sys
from typing import NoReturn

from gpt2_flax import doors
from gpt2_flax.doors import command_line
from gpt2_flax.errors import InputError, unknown_name


def listing() -> str:
  """Every door with what it is for; none is imported, so that this takes no time."""
  lines = [(__doc__ or "").strip(), ""]
  for name in doors.DOORS:
    source = pathlib.Path(doors.__file__).with_name(f"{name}.py").read_text("utf-8")
    docstring = ast.get_docstring(ast.parse(source)) or ""
    first_line, _, _ = docstring.partition("\n")
    lines.append(f"  {name:10}{first_line}")
  return "\n".join(lines)


def _open() -> int:
  name, *args = sys.argv[1:] or [""]
  if name in ("--help", "-h"):
    print(listing())
    return 0
  if not name:
    raise InputError(f"name a door: {', '.join(doors.DOORS)}; --help tells of each")
  if name not in doors.DOORS:
    raise unknown_name("door", name, doors.DOORS)
  door = importlib.import_module(f"gpt2_flax.doors.{name}")
  door.__doc__ = re.sub(r"python (\w+)\.py", r"gpt2-flax \1", door.__doc__ or "")
  sys.argv = [f"gpt2-flax {name}", *args]
  command_line.run(door.main)


def main() -> NoReturn:
  """Exits with the door's exit code; 2 if there is no such door."""
  sys.exit(command_line.guarded(_open))


if __name__ == "__main__":
  main()
