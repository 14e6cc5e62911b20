"""Metrics: kept in memory, and written as JSON lines, TensorBoard events, a picture."""

import json
import os
import pathlib

import jax
import tensorboardX

Record = dict[str, float | int | str]


def write_atomically(path: pathlib.Path, text: str) -> None:
  """Replaces a file's content in one go: a reader sees the old or the new."""
  temporary = path.with_name(path.name + ".tmp")
  with temporary.open("w", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)


def read_metrics(path: pathlib.Path) -> list[Record]:
  """The records of a metrics.jsonl; a line that a kill cut short is left out."""
  records = []
  for line in path.read_text("utf-8").splitlines() if path.exists() else ():
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return records


class MetricsWriter:
  """Appends records to WORKDIR/metrics.jsonl and to TensorBoard events beside it.

  What an interrupted run wrote after the step it goes on from is dropped, since
  those steps come again. Of several processes only the first writes.

  Attributes:
    records: all of them, those from before an interruption too.
  """

  def __init__(self, workdir: pathlib.Path, start_step: int):
    path = workdir / "metrics.jsonl"
    self.records = [r for r in read_metrics(path) if r["step"] <= start_step]
    writes = jax.process_index() == 0
    if writes:
      write_atomically(path, "".join(json.dumps(r) + "\n" for r in self.records))
    path = path if writes else pathlib.Path(os.devnull)
    self._file = path.open("a", encoding="utf-8", buffering=1)
    self._events = tensorboardX.SummaryWriter(
      str(workdir / "tensorboard"), purge_step=start_step + 1, write_to_disk=writes
    )

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *_) -> None:
    self._file.close()
    self._events.close()

  def write(self, step: int, values: dict[str, float | str]) -> None:
    """One record; text values go to TensorBoard as text."""
    record = {"step": step, **values}
    self.records.append(record)
    self._file.write(json.dumps(record) + "\n")
    for name, value in values.items():
      if isinstance(value, str):
        self._events.add_text(name, value, step)
      else:
        self._events.add_scalar(name, value, step)

  def has(self, step: int, name: str) -> bool:
    """Whether a value is there already, from before an interruption perhaps."""
    return any(r["step"] == step and name in r for r in self.records)


def plot_loss(records: list[Record], path: pathlib.Path) -> None:
  """Draws the training and validation loss, and the floor as a line."""
  import matplotlib.figure  # slow to import, and needed once a run

  def series(name: str) -> tuple[list, list]:
    points = [(r["step"], r[name]) for r in records if name in r]
    return [step for step, _ in points], [value for _, value in points]

  figure = matplotlib.figure.Figure(figsize=(7, 4), layout="constrained", dpi=120)
  axes = figure.subplots()
  axes.plot(*series("train/loss"), color="#9ecae1", linewidth=1, label="train")
  axes.plot(*series("val/loss"), color="#08519c", marker="o", label="validation")
  floor = next((r["val/floor"] for r in reversed(records) if "val/floor" in r), None)
  if floor is not None:
    axes.axhline(floor, color="#d95f0e", linestyle="--", label=f"floor {floor:.3f}")
  axes.set(xlabel="step", ylabel="loss (nats per token)")
  axes.spines[["top", "right"]].set_visible(False)
  axes.legend(frameon=False)
  temporary = path.with_name("tmp-" + path.name)
  figure.savefig(temporary)
  temporary.replace(path)
