"""Metrics survive a kill: whole lines only, no step twice."""

import json
import pathlib
import tempfile

import chex

from gpt2_flax.training.metrics import (
  MetricsWriter,
  plot_loss,
  read_metrics,
  write_atomically,
)


class MetricsTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    temporary = tempfile.TemporaryDirectory()
    self.addCleanup(temporary.cleanup)
    self.workdir = pathlib.Path(temporary.name)
    self.path = self.workdir / "metrics.jsonl"

  def test_what_is_written_is_read(self):
    with MetricsWriter(self.workdir, start_step=0) as writer:
      writer.write(1, {"train/loss": 2.5})
      writer.write(2, {"val/loss": 2.0, "val/sample": "the cat ."})
      self.assertTrue(writer.has(1, "train/loss"))
      self.assertFalse(writer.has(2, "train/loss"))
    expected = [
      {"step": 1, "train/loss": 2.5},
      {"step": 2, "val/loss": 2.0, "val/sample": "the cat ."},
    ]
    self.assertEqual(read_metrics(self.path), expected)
    self.assertTrue(any((self.workdir / "tensorboard").iterdir()))

  def test_steps_that_come_again_are_dropped(self):
    with MetricsWriter(self.workdir, start_step=0) as writer:
      for step in range(1, 6):
        writer.write(step, {"train/loss": float(step)})
    with self.path.open("a") as file:
      file.write('{"step": 6, "train/lo')  # cut short by a kill
    with MetricsWriter(self.workdir, start_step=3) as writer:
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

  def test_a_file_is_replaced_whole(self):
    write_atomically(self.path, "old")
    write_atomically(self.path, "new")
    self.assertEqual(self.path.read_text(), "new")
    self.assertEqual([p.name for p in self.workdir.iterdir()], ["metrics.jsonl"])
