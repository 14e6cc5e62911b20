"""python -m lessons [NAME | all]: lists the lessons, runs one, or runs all."""

import importlib
import sys
from types import ModuleType

from gpt2_flax.doors.command_line import (
  guarded,
  keep_compiled_programs,
  leave_on_signals,
)
from gpt2_flax.errors import InputError, unknown_name
from gpt2_flax.files.atomic import write_text
from lessons import LESSONS
from lessons.report import FOLDER, Report, show

HEADER = """\
# Lessons

One claim a file, tried out on small models in one to two minutes. This page and its
pictures are what `python -m lessons all` wrote; `python -m lessons NAME` runs one.
"""


def load(name: str) -> ModuleType:
  """The module of a lesson."""
  return importlib.import_module(f"lessons.{name}")


def listing() -> str:
  """Every lesson with its claim and how long it takes."""
  lines = []
  for name in LESSONS:
    lesson = load(name)
    lines.append(f"{name:14}{lesson.SECONDS:4} s  {lesson.CLAIM}")
  return "\n".join(lines)


def page(outcomes: dict[str, tuple[Report, float]]) -> str:
  """lessons/README.md: a row for each lesson, then its figures and picture."""
  table = ["| lesson | claim | verdict | took |", "|---|---|---|---|"]
  sections = []
  for name, (report, seconds) in outcomes.items():
    claim = load(name).CLAIM
    verdict = f"[{report.verdict}](#{name})"
    table.append(f"| [{name}]({name}.py) | {claim} | {verdict} | {seconds:.0f} s |")
    findings = "\n".join(f"- {finding}" for finding in report.findings)
    picture = f"![{claim}](pictures/{name}.png)"
    sections.append(f"## {name}\n\n{claim}\n\n{findings}\n\n{picture}\n")
    for title, rows in report.markdown_tables().items():
      sections.append(f"{title}:\n\n{rows}\n")
  return "\n".join([HEADER, *table, "", *sections])


def main(args: list[str]) -> int:
  """0; an InputError for a lesson that does not exist."""
  match args:
    case []:
      print(listing())
    case ["all"]:
      outcomes = {}
      for name in LESSONS:
        print(f"\n# {name}: {load(name).CLAIM}")
        outcomes[name] = show(load(name).run, name)
      write_text(FOLDER / "README.md", page(outcomes))
    case [name]:
      if name not in LESSONS:
        raise unknown_name("lesson", name, [*LESSONS, "all"])
      print(load(name).CLAIM)
      show(load(name).run, name)
    case _:
      raise InputError("give one lesson, all, or nothing for a list")
  return 0


if __name__ == "__main__":
  leave_on_signals()
  keep_compiled_programs()
  sys.exit(guarded(lambda: main(sys.argv[1:])))
