"""Metrics: kept in memory, and written as JSON lines, TensorBoard events, a picture."""

from collections.abc import Callable, Mapping
import json
import os
import pathlib
import socket
import struct
import time
from typing import Any

import jax
from tensorboardX import record_writer, summary
from tensorboardX.proto.event_pb2 import Event, SessionLog

from gpt2_flax.errors import cannot_write
from gpt2_flax.files.atomic import replacing, write_text

Record = dict[str, Any]  # of JSON values; "step" is an int
Write = Callable[[int, Mapping[str, float | str]], None]  # takes a step and its values


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

  Args:
    write: gets each record too, if given.

  Attributes:
    records: all of them, those from before an interruption too.
  """

  def __init__(
    self, workdir: pathlib.Path, start_step: int, write: Write | None = None
  ):
    self._path, self._write = workdir / "metrics.jsonl", write
    self.records = [r for r in read_metrics(self._path) if r["step"] <= start_step]
    self._writes = jax.process_index() == 0
    if self._writes:
      write_text(self._path, "".join(json.dumps(r) + "\n" for r in self.records))
      self._events = _Events(workdir / "tensorboard", purge_step=start_step + 1)

  def write(self, step: int, values: Mapping[str, float | str]) -> None:
    """One record; text values go to TensorBoard as text.

    Raises:
      RunError: the disk is full.
    """
    record = {"step": step, **values}
    self.records.append(record)
    if self._writes:
      _append(self._path, (json.dumps(record) + "\n").encode())
      self._events.write(step, values)
      if self._write:
        self._write(step, values)

  def has(self, step: int, name: str) -> bool:
    """Whether a value is there already, from before an interruption perhaps."""
    return any(r["step"] == step and name in r for r in self.records)


class _Events:
  """A file that TensorBoard reads.

  tensorboardX's own writer uses a thread. A full disk ends that thread with a stack
  dump, and then the training blocks. This writer raises.
  """

  def __init__(self, folder: pathlib.Path, purge_step: int):
    name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
    self._path = folder / f"{name}.{os.getpid()}"
    try:
      folder.mkdir(exist_ok=True)
    except OSError as error:
      raise cannot_write(folder, error) from error
    start = SessionLog(status=SessionLog.START)  # drops what is there from this step on
    self._append(
      Event(file_version="brain.Event:2"), Event(step=purge_step, session_log=start)
    )

  def write(self, step: int, values: Mapping[str, float | str]) -> None:
    summaries = [
      summary.text(name, value)
      if isinstance(value, str)
      else summary.scalar(name, value)
      for name, value in values.items()
    ]
    self._append(*(Event(step=step, summary=each) for each in summaries))

  def _append(self, *events: Event) -> None:
    """Each as a TFRecord: its length, and itself, each followed by its CRC."""
    content = []
    for event in events:
      event.wall_time = time.time()
      data = event.SerializeToString()
      for part in (struct.pack("<Q", len(data)), data):
        content += [part, struct.pack("<I", record_writer.masked_crc32c(part))]
    _append(self._path, b"".join(content))


def _append(path: pathlib.Path, content: bytes) -> None:
  # Opened each time: a file left open after an error would raise again when closed.
  try:
    with path.open("ab") as file:
      file.write(content)
  except OSError as error:
    raise cannot_write(path, error) from error


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
  with replacing(path) as temporary:
    figure.savefig(temporary, format="png")
