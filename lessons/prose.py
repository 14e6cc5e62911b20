"""What a lesson says to its reader: the markdown cells of its file."""

import dataclasses
import pathlib
import re

FOLDER = pathlib.Path(__file__).parent
QUESTION = "**What do you expect?**"
VERDICT, EXERCISE, ANSWER = "## The verdict", "## Exercise", "## Answer"


@dataclasses.dataclass(frozen=True)
class Cell:
  """One cell of a notebook.

  Attributes:
    markdown: whether it is prose; else it is code.
    text: without the line that begins the cell; prose without its comment signs.
  """

  markdown: bool
  text: str


def cells(source: str) -> list[Cell]:
  """The cells of a file in jupytext's percent format, in order."""
  found = []
  for part in re.split(r"^(?=# %%)", source, flags=re.MULTILINE):
    marker, _, text = (
      part.partition("\n") if part.startswith("# %%") else ("", "", part)
    )
    markdown = "[markdown]" in marker
    if markdown:
      text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
    if text.strip():
      found.append(Cell(markdown, text.strip("\n")))
  return found


@dataclasses.dataclass(frozen=True)
class Prose:
  """A lesson's markdown, in parts; each but the title with its headings.

  Attributes:
    title: of the lesson.
    story: all that comes before the measurement; it ends by asking what is expected,
      or by what must be known besides.
    verdict, exercise, answer: what comes after.
  """

  title: str
  story: str
  verdict: str
  exercise: str
  answer: str


def read(name: str) -> Prose:
  """The prose of a lesson.

  Raises:
    ValueError: a part is missing, is there twice, or stands in another place.
  """
  found = cells((FOLDER / f"{name}.py").read_text("utf-8"))
  text = "\n\n".join(cell.text for cell in found if cell.markdown)
  headings = ("# ", QUESTION, VERDICT, EXERCISE, ANSWER)
  at = [
    [match.start() for match in re.finditer(f"^{re.escape(heading)}", text, re.M)]
    for heading in headings
  ]
  places = [place for of_heading in at for place in of_heading]
  if any(len(of_heading) != 1 for of_heading in at) or places != sorted(places):
    raise ValueError(
      f"lessons/{name}.py: must have, once and in this order, {', '.join(headings)}"
    )
  title, story = text[: places[2]].split("\n", 1)
  return Prose(
    title.removeprefix("# "),
    story.strip(),
    *(text[a:b].strip() for a, b in zip(places[2:], [*places[3:], None], strict=True)),
  )
