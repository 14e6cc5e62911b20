"""What a lesson hands in, and how it is shown: tables, a verdict, a picture."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
import time

from matplotlib.figure import Figure

from gpt2_flax.files.atomic import replacing

FOLDER = pathlib.Path(__file__).parent
PICTURES = FOLDER / "pictures"
# Told apart by the colour-blind too (Okabe & Ito, 2008, "Color Universal Design").
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

Row = Mapping[str, str | int | float]


@dataclasses.dataclass(frozen=True)
class Finding:
  """One part of the verdict.

  Attributes:
    text: what was claimed, with the figures that were measured.
    holds: whether the figures bear it out.
  """

  text: str
  holds: bool

  def __str__(self) -> str:
    return f"{'holds' if self.holds else 'does not hold'}: {self.text}"


@dataclasses.dataclass(frozen=True)
class Report:
  """The outcome of a lesson.

  Attributes:
    tables: title -> rows; a row is column -> value.
    findings: the claim's parts; it holds if all do.
    figure: the picture.
  """

  tables: Mapping[str, Sequence[Row]]
  findings: Sequence[Finding]
  figure: Figure

  @property
  def holds(self) -> bool:
    return all(finding.holds for finding in self.findings)

  @property
  def verdict(self) -> str:
    return "holds" if self.holds else "does not hold"

  def markdown_tables(self) -> dict[str, str]:
    """Title -> the table as text."""
    return {title: _markdown(rows) for title, rows in self.tables.items()}


def new_figure(num_panels: int = 1) -> tuple[Figure, list]:
  """A figure with panels side by side, and their axes."""
  figure = Figure(figsize=(1 + 4 * num_panels, 3.6), layout="constrained", dpi=110)
  panels = list(figure.subplots(1, num_panels, squeeze=False)[0])
  for panel in panels:
    panel.spines[["top", "right"]].set_visible(False)
  return figure, panels


def _markdown(rows: Sequence[Row]) -> str:
  """Rows as a table that reads well as it is; floats with 4 significant digits."""
  cells = [list(rows[0])] + [[_cell(value) for value in row.values()] for row in rows]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells]
  lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
  return "\n".join(lines)


def _cell(value: str | int | float) -> str:
  if isinstance(value, float):
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"
  return str(value)


def show(run: Callable[[], Report], file: str) -> tuple[Report, float]:
  """Runs a lesson, prints what came out, and saves its picture.

  Args:
    run: the lesson's own.
    file: of the lesson; its name is the picture's.

  Returns:
    The report, and the seconds that it took.
  """
  began = time.perf_counter()
  report = run()
  seconds = time.perf_counter() - began
  for title, table in report.markdown_tables().items():
    print(f"\n{title}\n\n{table}")
  print()
  for finding in report.findings:
    print(f"- {finding}")
  picture = PICTURES / f"{pathlib.Path(file).stem}.png"
  with replacing(picture) as temporary:
    report.figure.savefig(temporary, format="png")
  print(f"\nThe claim {report.verdict}. {seconds:.0f} s; picture: {picture}")
  return report, seconds
