"""Metrics survive a kill: whole lines only, no step twice."""

import json
import pathlib
import struct
import tempfile
import time
from unittest import mock

import chex
import jax
from matplotlib import figure
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from gpt2_flax.errors import RunError
from gpt2_flax.training.metrics import (
  MetricsWriter,
  plot_loss,
  read_metrics,
)


class MetricsTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = self.workdir / "metrics.jsonl"

  def test_what_is_written_is_read(self):
    writer = MetricsWriter(self.workdir, start_step=0)
    writer.write(1, {"train/loss": 2.5})
    writer.write(2, {"val/loss": 2.0, "val/sample": "the cat ."})
    self.assertTrue(writer.has(1, "train/loss"))
    self.assertFalse(writer.has(2, "train/loss"))
    expected = [
      {"step": 1, "train/loss": 2.5},
      {"step": 2, "val/loss": 2.0, "val/sample": "the cat ."},
    ]
    self.assertEqual(read_metrics(self.path), expected)

  def test_steps_that_come_again_are_dropped(self):
    writer = MetricsWriter(self.workdir, start_step=0)
    for step in range(1, 6):
      writer.write(step, {"train/loss": float(step)})
    with self.path.open("a") as file:
      file.write('{"step": 6, "train/lo')  # cut short by a kill
    writer = MetricsWriter(self.workdir, start_step=3)
    self.assertEqual([r["step"] for r in writer.records], [1, 2, 3])
    writer.write(4, {"train/loss": 40.0})
    lines = [json.loads(line) for line in self.path.read_text().splitlines()]
    self.assertEqual([r["train/loss"] for r in lines], [1.0, 2.0, 3.0, 40.0])

  def test_a_picture_with_and_without_a_floor(self):
    records = [{"step": 1, "train/loss": 2.0}, {"step": 2, "val/loss": 1.5}]
    plot_loss(records, self.workdir / "a.png")
    plot_loss([*records, {"step": 2, "val/floor": 1.0}], self.workdir / "b.png")
    pictures = [(self.workdir / name).read_bytes() for name in ("a.png", "b.png")]
    self.assertNotEqual(*pictures)

  def test_the_picture_shows_what_was_measured(self):
    records = [
      {"step": 1, "train/loss": 3.0},
      {"step": 2, "train/loss": 2.0},
      {"step": 2, "val/loss": 2.5, "val/floor": 1.5},
    ]

    def save(figure, path, **_):
      path.touch()
      (axes,) = figure.axes
      lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
      self.assertEqual(lines["train"], [[1, 3.0], [2, 2.0]])
      self.assertEqual(lines["validation"], [[2, 2.5]])
      self.assertEqual([y for _, y in lines["floor 1.500"]], [1.5, 1.5])

    with mock.patch.object(figure.Figure, "savefig", autospec=True) as saved:
      saved.side_effect = save
      plot_loss(records, self.workdir / "loss.png")
    saved.assert_called_once()

  def test_of_several_processes_only_the_first_writes(self):
    MetricsWriter(self.workdir, start_step=0).write(1, {"train/loss": 2.5})
    files = {path: path.stat() for path in self.workdir.rglob("*")}
    write = mock.Mock()
    with mock.patch.object(jax, "process_index", return_value=1):
      writer = MetricsWriter(self.workdir, start_step=1, write=write)
      writer.write(2, {"train/loss": 2.0})
    self.assertEqual([r["step"] for r in writer.records], [1, 2])
    self.assertEqual({path: path.stat() for path in self.workdir.rglob("*")}, files)
    write.assert_not_called()

  def test_tensorboard_reads_what_was_written(self):
    writer = MetricsWriter(self.workdir, start_step=4)
    writer.write(5, {"train/loss": 2.5, "val/sample": "the cat ."})
    (path,) = (self.workdir / "tensorboard").iterdir()
    content, events = path.read_bytes(), []
    while content:  # TFRecords: length, CRC, data, CRC
      (length,) = struct.unpack("<Q", content[:8])
      self.assertEqual(
        masked_crc32c(content[:8]), int.from_bytes(content[8:12], "little")
      )
      data, rest = content[12 : 12 + length], content[12 + length :]
      self.assertEqual(masked_crc32c(data), int.from_bytes(rest[:4], "little"))
      events.append(Event.FromString(data))
      content = rest[4:]
    version, start, loss, sample = events
    self.assertEqual(version.file_version, "brain.Event:2")
    self.assertEqual((start.step, start.session_log.status), (5, SessionLog.START))
    self.assertEqual((loss.step, loss.summary.value[0].tag), (5, "train/loss"))
    self.assertEqual(loss.summary.value[0].simple_value, 2.5)
    self.assertEqual(sample.summary.value[0].tensor.string_val, [b"the cat ."])
    self.assertLess(abs(sample.wall_time - time.time()), 3600)

  def test_a_failing_disk_is_one_line(self):
    writer = MetricsWriter(self.workdir, start_step=0)
    self.path.unlink()
    self.path.symlink_to("/dev/full")
    message = r"metrics.jsonl cannot be written: No space left on device$"
    with self.assertRaisesRegex(RunError, message):
      writer.write(1, {"train/loss": 2.5})
