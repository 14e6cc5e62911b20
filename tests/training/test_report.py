"""What is written and said of steps, and which bad step is one too many."""

import json
import math
import pathlib
import tempfile
from unittest import mock

import chex
import jax

from gpt2_flax.errors import RunError
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.training.bad_steps import BadSteps
from gpt2_flax.training.metrics import MetricsWriter
from gpt2_flax.training.report import Report
from gpt2_flax.training.throughput import Throughput


def metrics(
  loss: float, grad_norm: float = 1.0, skipped: int = 3, targets: int = 48
) -> dict[str, float]:
  return {
    "train/loss": loss,
    "train/loss_mean": 2.5,
    "train/targets": targets,
    "train/grad_norm": grad_norm,
    "train/skipped": skipped,
  }


class ReportTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    writer = MetricsWriter(pathlib.Path(folder), start_step=0)
    self.records = writer.records
    self.read = self.enterContext(
      mock.patch.object(jax, "device_get", side_effect=lambda values: values)
    )
    self.progress = mock.Mock()
    self.report = Report(
      writer,
      self.progress,
      Throughput(GPT2Config(num_layers=1, embed_dim=12), batch_size=2),
      BadSteps(num_allowed=5, num_seen=3, last_saved=7),
      log_every_steps=2,
    )

  def test_reads_a_step_only_when_the_next_is_under_way(self):
    self.report.stepped(8, first := metrics(3.0), waited=0.0)
    self.read.assert_not_called()
    self.report.stepped(10, metrics(2.0), waited=0.0)
    self.read.assert_called_once_with(first)
    self.assertEqual([r["step"] for r in self.records], [8])
    self.report.flush()
    self.assertEqual([r["train/loss"] for r in self.records], [3.0, 2.0])

  def test_shares_are_shares(self):
    self.report.stepped(8, metrics(3.0), waited=0.0)
    self.report.flush()
    self.assertBetween(self.records[0]["data_wait_share"], 0.0, 1.0)
    self.assertGreater(self.records[0]["tokens_per_second"], 0)

  def test_own_measures_are_written_and_stay_in_the_bar(self):
    self.report.evaluated(8, {"val/loss": 2.0}, {"mine": 0.25, "none": math.nan}, None)
    self.assertEqual(self.records, [{"step": 8, "val/loss": 2.0, "mine": 0.25}])
    (line,) = (call.args[0] for call in self.progress.line.call_args_list)
    self.assertIn("mine 0.2500", line)
    self.report.stepped(10, metrics(3.0), waited=0.0)
    self.report.flush()
    _, shown = self.progress.update.call_args.args
    self.assertEqual(shown["mine"], "0.25")

  def test_bad_steps_are_named_and_one_too_many_ends_the_run(self):
    self.report.stepped(
      9, metrics(math.nan, math.nan, skipped=4, targets=0), waited=0.0
    )
    self.report.stepped(10, metrics(3.0, skipped=4), waited=0.0)
    self.report.stepped(11, metrics(9.0, 4.0, skipped=5), waited=0.0)
    self.report.flush()
    self.assertEqual(
      [call.args[0] for call in self.progress.line.call_args_list],
      [
        "the loss is nan and its gradient's norm nan at step 9, whose batch has no"
        " target that counts: left out, 4 of at most 5",
        "the loss is 9 and its gradient's norm 4 at step 11, after a mean loss of 2.5:"
        " left out, 5 of at most 5",
      ],
    )
    found = [(r["step"], r.get("train/loss"), r["train/skipped"]) for r in self.records]
    self.assertEqual(found, [(9, None, 4), (10, 3.0, 4), (11, 9.0, 5)])
    json.dumps(self.records, allow_nan=False)

    self.report.stepped(12, metrics(1.0, math.inf, skipped=6), waited=0.0)
    with self.assertRaisesRegex(
      RunError,
      "the loss is 1 and its gradient's norm inf at step 12: stopped before .*"
      "max_skipped_steps is 5; last good checkpoint: step 7",
    ):
      self.report.flush()
    self.assertLen(self.records, 3)
