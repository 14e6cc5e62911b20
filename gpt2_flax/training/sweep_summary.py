"""What a sweep came to: means over seeds with their errors, a table and a picture."""

from collections.abc import Sequence
import math
import pathlib
from typing import Any

import numpy as np

from gpt2_flax.files.atomic import replacing
from gpt2_flax.training.metrics import read_metrics
from gpt2_flax.training.sweep import Row

MOST_CURVES = 12  # settings whose curves can be told apart in a picture
MOST_TICKS = 8  # that have room along an axis
MOST_INSIDE = 4  # lines of a legend that have room among the curves
# Told apart by the colour-blind too (Okabe & Ito, 2008, "Color Universal Design")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def setting(row: Row) -> dict[str, Any]:
  """What a member was run with, seeds left out: those that share it are averaged."""
  return {key: v for key, v in row["over"].items() if not key.endswith("seed")}


def summarise(rows: Sequence[Row], names: Sequence[str]) -> list[dict[str, Any]]:
  """A line a setting.

  Args:
    names: of measures; those that no row has are left out.

  Returns:
    Each line has the setting, "seeds" (how many members are averaged), and for each
    measure "NAME" (the mean) and "NAME error": the standard error of the mean, None
    with one seed. "diverged", where any did, is how many are left out.
  """
  lines, keys = [], [key for row in rows for key in setting(row)]
  for of_one in _by_setting(rows):
    ended = [row for row in of_one if "diverged" not in row]
    line = {**dict.fromkeys(keys), **setting(of_one[0]), "seeds": len(ended)}
    for name in names:
      values = [row[name] for row in ended if name in row]
      if not any(name in row for row in rows):
        continue
      line[name] = float(np.mean(values)) if values else None
      line[f"{name} error"] = _error(values)
    if any("diverged" in row for row in rows):
      line["diverged"] = len(of_one) - len(ended)
    lines.append(line)
  return lines


def _by_setting(rows: Sequence[Row]) -> list[list[Row]]:
  found: dict[str, list[Row]] = {}
  for row in rows:
    found.setdefault(str(setting(row)), []).append(row)
  return list(found.values())


def _error(values: Sequence[float]) -> float | None:
  if len(values) < 2:
    return None
  return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def as_markdown(lines: Sequence[dict[str, Any]]) -> str:
  """The lines as a table; an error stands behind its mean."""
  names = [name for name in lines[0] if not name.endswith(" error")]

  def cell(line: dict[str, Any], name: str) -> str:
    value, error = line[name], line.get(f"{name} error")
    if value is None:
      return "-"
    if f"{name} error" not in line:
      return str(value).replace("|", r"\|")
    return f"{value:.4f}" + (f" ± {error:.4f}" if error is not None else "")

  cells = [names, *([cell(line, name) for name in names] for line in lines)]
  return markdown_table(cells) + "\n"


def markdown_table(cells: Sequence[Sequence[str]]) -> str:
  """Rows of cells, the header first, as a table that reads well as it is."""
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  text = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
  text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
  return "\n".join(text)


def plot(rows: Sequence[Row], folder: pathlib.Path, path: pathlib.Path) -> None:
  """Draws the end over the first key that has numbers, and the way there by step.

  The way is left out where the end is all that was measured.

  Bands are one standard error of the mean to each side.

  Args:
    folder: of the sweep; members whose folders are gone have no curve.
  """
  import matplotlib.figure  # slow to import, and needed once a sweep

  ended = [row for row in rows if "diverged" not in row]
  measured = "val/gap" if any("val/gap" in row for row in ended) else "val/loss"
  curves = _curves(ended, measured, folder)
  panels = 2 if any(len(steps) > 1 for _, steps in curves) else 1
  size = (5.5 * panels, 4)
  figure = matplotlib.figure.Figure(figsize=size, layout="constrained", dpi=120)
  left, *right = figure.subplots(1, panels, squeeze=False)[0]
  for axes in (left, *right):
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(ylabel=f"{measured} (nats per token)")
  _plot_end(left, ended, measured)
  for axes in right:
    _plot_way(axes, curves)
  with replacing(path) as temporary:
    figure.savefig(temporary, format="png")


def _plot_end(axes: Any, rows: Sequence[Row], measured: str) -> None:
  found = [
    (setting(of_one[0]), [row[measured] for row in of_one if measured in row])
    for of_one in _by_setting(rows)
  ]
  found = [(of_it, values) for of_it, values in found if values]
  along = _axis([of_it for of_it, _ in found])
  axes.set(xlabel=along or "", title="at the end")
  curves: dict[str, list[tuple[float, list[float]]]] = {}
  for number, (of_it, values) in enumerate(found):
    label = _label(of_it, along) if along else ""
    x = of_it[along] if along else number
    curves.setdefault(label, []).append((x, values))
  for number, (label, points) in enumerate(list(curves.items())[:MOST_CURVES]):
    points.sort()
    xs = [x for x, _ in points]
    mean = np.array([np.mean(values) for _, values in points])
    error = np.array([_error(values) or 0.0 for _, values in points])
    how = dict(zip(("color", "linestyle"), _style(number), strict=True))
    if along:
      axes.fill_between(
        xs, mean - error, mean + error, color=how["color"], alpha=0.2, linewidth=0
      )
    else:
      how["linestyle"] = "none"
    axes.errorbar(xs, mean, error, **how, marker="o", capsize=3, label=label or None)
    for x, values in points:
      axes.plot([x] * len(values), values, ".", color=how["color"], alpha=0.3)
  ends = [value for _, values in found for value in values]
  if ends and 0 < 4 * min(ends) < max(ends):
    axes.set_yscale("log")
  ticks = sorted({x for points in curves.values() for x, _ in points})
  if along and ticks[0] > 0 and ticks[-1] / ticks[0] >= 4:
    axes.set_xscale("log")
  if along and len(ticks) <= MOST_TICKS:
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.minorticks_off()
  elif not along:
    labels = [_label(of_it) or "all seeds" for of_it, _ in found]
    axes.set_xticks(range(len(found)), labels, rotation=20 if len(found) > 3 else 0)
    axes.margins(x=0.3)
  _add_legend(axes)


def _axis(settings: Sequence[dict[str, Any]]) -> str | None:
  """The first key that has numbers in all settings, and several."""
  for key in dict.fromkeys(key for of_it in settings for key in of_it):
    values = [of_it.get(key) for of_it in settings]
    if all(map(_is_number, values)) and len(set(values)) > 1:
      return key
  return None


def _label(of_it: dict[str, Any], but: str | None = None) -> str:
  """A setting in a few words; what matplotlib would read as a formula stays a text."""
  pairs = [f"{_leaf(key)} {value}" for key, value in of_it.items() if key != but]
  return ", ".join(pairs).replace("$", r"\$")


def _style(number: int) -> tuple[str, str]:
  """The colour and the line of a curve."""
  return COLOURS[number % len(COLOURS)], "-" if number < len(COLOURS) else "--"


def _curves(
  rows: Sequence[Row], measured: str, folder: pathlib.Path
) -> list[tuple[str, dict[int, list[float]]]]:
  """The label of each setting, and what all its seeds have measured, by step."""
  found = []
  for of_one in _by_setting(rows)[:MOST_CURVES]:
    curves: dict[int, list[float]] = {}
    for row in of_one:
      for record in read_metrics(folder / row["member"] / "metrics.jsonl"):
        if record.get(measured, 0) > 0:
          curves.setdefault(record["step"], []).append(record[measured])
    whole = {s: v for s, v in sorted(curves.items()) if len(v) == len(of_one)}
    found.append((_label(setting(of_one[0])), whole))
  return found


def _plot_way(axes: Any, curves: Sequence[tuple[str, dict[int, list[float]]]]) -> None:
  axes.set(xlabel="step", title="on the way")
  lowest, highest = math.inf, 0.0
  for number, (label, whole) in enumerate(curves):
    if not whole:
      continue
    mean = np.array([np.mean(values) for values in whole.values()])
    error = np.array([_error(values) or 0.0 for values in whole.values()])
    colour, style = _style(number)
    steps = list(whole)
    axes.plot(steps, mean, style, color=colour, marker=".", label=label or None)
    low, high = np.maximum(mean - error, mean / 10), mean + error  # above 0
    axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    lowest, highest = min(lowest, low.min()), max(highest, high.max())
  if highest > 4 * lowest:
    axes.set_yscale("log")
  _add_legend(axes)


def _add_legend(axes: Any) -> None:
  labels = axes.get_legend_handles_labels()[1]
  if len(labels) > MOST_INSIDE:
    axes.legend(
      frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1)
    )
  elif labels:
    axes.legend(frameon=False, fontsize="small")


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _leaf(key: str) -> str:
  return key.rpartition(".")[2]
