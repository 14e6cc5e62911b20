"""What a lesson hands in, and how it is shown: tables, a verdict, a picture."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import io
import sys

from matplotlib.figure import Figure

from gpt2_flax.training.sweep_summary import COLOURS, markdown_table

__all__ = ["COLOURS", "Finding", "Report", "Row", "new_figure", "show"]

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
    figure: the picture; None where it was drawn before.
  """

  tables: Mapping[str, Sequence[Row]]
  findings: Sequence[Finding]
  figure: Figure | None

  @property
  def holds(self) -> bool:
    return all(finding.holds for finding in self.findings)

  @property
  def verdict(self) -> str:
    return "holds" if self.holds else "does not hold"

  def markdown_tables(self) -> str:
    """The tables, each under its title."""
    return "\n\n".join(
      f"{title}:\n\n{_markdown(rows)}" for title, rows in self.tables.items()
    )

  def markdown_findings(self) -> str:
    """The findings as a list."""
    return "\n".join(f"- {finding}" for finding in self.findings)


def new_figure(num_panels: int = 1, num_rows: int = 1) -> tuple[Figure, list]:
  """A figure with panels side by side, and their axes, row by row."""
  columns = num_panels // num_rows
  size = (1 + 4 * columns, 3.6 * num_rows)
  figure = Figure(figsize=size, layout="constrained", dpi=110)
  panels = list(figure.subplots(num_rows, columns, squeeze=False).flat)
  for panel in panels:
    panel.spines[["top", "right"]].set_visible(False)
  return figure, panels


def _markdown(rows: Sequence[Row]) -> str:
  """Rows as a table that reads well as it is; floats with 4 significant digits."""
  cells = [[_cell(value) for value in row.values()] for row in rows]
  return markdown_table([list(rows[0]), *cells])


def _cell(value: str | int | float) -> str:
  if isinstance(value, float):
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"
  return str(value)


def show(run: Callable[[], Report]) -> None:
  """Runs a lesson and shows what came out: the cell of a notebook that measures."""
  report = run()
  text = f"{report.markdown_tables()}\n\n{report.markdown_findings()}\n"
  ipython = sys.modules.get("IPython")  # there already if this is a notebook
  if ipython is None or ipython.get_ipython() is None:
    print(text)
    return
  picture = io.BytesIO()
  report.figure.savefig(picture, format="png")
  display = ipython.display.display
  display({"text/plain": text, "text/markdown": text}, raw=True)
  display({"text/plain": "", "image/png": picture.getvalue()}, raw=True)
