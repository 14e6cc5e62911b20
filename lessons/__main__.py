"""Lists the lessons, runs one, or runs all and writes lessons/README.md."""

import importlib
import sys
from types import ModuleType

from gpt2_flax import command_line
from gpt2_flax.errors import unknown_name
from lessons import LESSONS
from lessons.report import FOLDER, markdown_table, PICTURES, show

HEAD = """# Claims about attention, each tried out

One runnable file a claim. `python -m lessons NAME` runs one and ends with a verdict,
computed from the numbers; `python -m lessons all` runs all and writes this page.

"""


def _load(name: str) -> ModuleType:
  return importlib.import_module(f"lessons.{name}")


def _list() -> None:
  for name in LESSONS:
    lesson = _load(name)
    print(f"{name:12s} {lesson.SECONDS:3d} s  {lesson.CLAIM}")
  print("\npython -m lessons NAME runs one, python -m lessons all all of them")


def _run_all() -> None:
  rows, details = [], []
  for name in LESSONS:
    lesson = _load(name)
    print(f"\n=== {name}: {lesson.CLAIM}")
    report, seconds = show(lesson.run, lesson.__file__)
    rows.append(
      {
        "lesson": f"[{name}]({name}.py)",
        "claim": lesson.CLAIM,
        "verdict": report.verdict,
        "seconds": round(seconds),
      }
    )
    tables = [f"{title}\n\n{markdown_table(t)}\n" for title, t in report.tables.items()]
    findings = "".join(f"- {finding}\n" for finding in report.findings)
    picture = f"![{lesson.CLAIM}]({PICTURES.name}/{name}.png)\n"
    parts = [f"## {name}: {lesson.CLAIM}\n", *tables, findings, picture]
    details.append("\n".join(parts))
  text = HEAD + markdown_table(rows) + "\n\n" + "\n".join(details)
  (FOLDER / "README.md").write_text(text, "utf-8")
  print(f"\nwrote {FOLDER / 'README.md'}")


def main() -> int:
  """What the arguments ask for."""
  match sys.argv[1:]:
    case []:
      _list()
    case ["all"]:
      _run_all()
    case [name] if name in LESSONS:
      lesson = _load(name)
      show(lesson.run, lesson.__file__)
    case [name, *_]:
      raise unknown_name("lesson", name, ("all", *LESSONS))
  return 0


if __name__ == "__main__":
  command_line.keep_compiled_programs()
  sys.exit(command_line.guarded(main))
