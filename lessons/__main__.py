"""python -m lessons [NAME | all] [--write]: shows the path, one lesson, or all."""

import importlib
import pathlib
import sys
import time
from types import ModuleType

from gpt2_flax.doors.command_line import (
  guarded,
  keep_compiled_programs,
  leave_on_signals,
)
from gpt2_flax.errors import InputError, unknown_name
from gpt2_flax.files.atomic import write_text
from lessons import LESSONS
from lessons.outcomes import keep, keep_picture, kept
from lessons.prose import FOLDER, read

PAGE = FOLDER / "README.md"
START = FOLDER / "start.md"
PICTURES = pathlib.Path("runs/lessons")  # of what is not kept


def load(name: str) -> ModuleType:
  """The module of a lesson."""
  return importlib.import_module(f"lessons.{name}")


def teaches(name: str) -> str:
  """One line: what a lesson is for."""
  return load(name).__doc__.split("\n", 1)[0]


def path() -> str:
  """Every lesson in order, with what it teaches and how long it takes."""
  return "\n".join(
    f"{number:2} {name:16}{load(name).SECONDS:4} s  {teaches(name)}"
    for number, name in enumerate(LESSONS, 1)
  )


def tell(name: str, write: bool) -> None:
  """One lesson, in the order of its notebook: story, measurement, verdict, exercise."""
  prose, lesson = read(name), load(name)
  print(f"# {prose.title}\n\n{prose.story}\n\n... about {lesson.SECONDS} seconds ...\n")
  began = time.perf_counter()
  report = lesson.run()
  seconds = time.perf_counter() - began
  print(f"{report.markdown_tables()}\n\n{report.markdown_findings()}\n")
  if write:
    keep(name, report, seconds)
  else:
    keep_picture(report, PICTURES / f"{name}.png")
    print(f"The picture: {PICTURES / f'{name}.png'}")
  print(f'"{lesson.CLAIM}": the claim {report.verdict}. {seconds:.0f} s\n')
  print(f"{prose.verdict}\n\n{prose.exercise}\n")
  print(f"The answer is at the end of lessons/{name}.py.\n")


def page() -> str:
  """lessons/README.md: the path, then each lesson with what it came to."""
  table = [
    "| | lesson | teaches | claim | verdict | took |",
    "|---|---|---|---|---|---|",
  ]
  sections = []
  for number, name in enumerate(LESSONS, 1):
    prose, claim = read(name), load(name).CLAIM
    if outcome := kept(name):
      report, seconds = outcome
      verdict, took = report.verdict, f"{seconds:.0f} s"
      measured = (
        f"*{claim}*: the claim **{verdict}**.\n\n{report.markdown_findings()}\n\n"
        f"![{claim}](outcomes/{name}.png)\n\n{report.markdown_tables()}"
      )
    else:
      verdict, took = "not measured yet", f"{load(name).SECONDS} s"
      measured = f"*{claim}*: `python -m lessons {name} --write` measures it."
    link = f"[{name}](#{name})"
    table.append(
      f"| {number} | {link} | {teaches(name)} | {claim} | {verdict} | {took} |"
    )
    heading, answer = prose.answer.split("\n", 1)
    sections.append(
      f'<a id="{name}"></a>\n\n## {number}. {prose.title}\n\n'
      f"The notebook: [{name}.py]({name}.py). In a terminal: `python -m lessons"
      f" {name}`.\n\n"
      + _deeper(f"{prose.story}\n\n## What came out\n\n{measured}\n\n")
      + _deeper(f"{prose.verdict}\n\n{prose.exercise}\n\n")
      + f"<details><summary>{heading.removeprefix('## ')}</summary>\n\n"
      + f"{answer.strip()}\n\n</details>\n"
    )
  start = START.read_text("utf-8").rstrip()
  return "\n".join([f"{start}\n\n## The path\n", *table, "", *sections])


def _deeper(markdown: str) -> str:
  """The same, with headings one level down; a lesson's code blocks have none."""
  return "\n".join(
    f"#{line}" if line.startswith("##") else line for line in markdown.split("\n")
  )


def main(args: list[str]) -> int:
  """0; an InputError for a lesson that does not exist."""
  write = "--write" in args
  match [arg for arg in args if arg != "--write"]:
    case []:
      print(f"{START.read_text('utf-8')}\n{path()}")
    case ["all"]:
      for name in LESSONS:
        tell(name, write)
    case [name]:
      if name not in LESSONS:
        raise unknown_name("lesson", name, [*LESSONS, "all"])
      tell(name, write)
    case _:
      raise InputError("give one lesson, all, or nothing for the path")
  if write:
    write_text(PAGE, page())
  return 0


if __name__ == "__main__":
  leave_on_signals()
  keep_compiled_programs()
  sys.exit(guarded(lambda: main(sys.argv[1:])))
