"""The loop's meter: reads one step behind, so that the device never waits for it."""

import json
import math
import pathlib
import tempfile
from unittest import mock

import chex
import jax
import numpy as np

from configs import toy
from gpt2_flax.datasets.pipeline import train_dataset
from gpt2_flax.errors import RunError
from gpt2_flax.training import loop
from gpt2_flax.training.config import parse
from gpt2_flax.training.loss import summed_loss
from gpt2_flax.training.metrics import MetricsWriter
from gpt2_flax.training.workdir import load_run
from tests.close import assert_close, ROUNDINGS


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


class MeterTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    writer = MetricsWriter(pathlib.Path(folder), start_step=0)
    self.records = writer.records
    self.read = self.enterContext(
      mock.patch.object(jax, "device_get", side_effect=lambda values: values)
    )
    config = toy.get_config()
    config.train.log_every_steps = 2
    config.train.max_skipped_steps = 5
    experiment, _ = parse(config)
    self.progress = mock.Mock()
    self.meter = loop._Meter(experiment, writer, self.progress, kept=7, skipped=3)

  def test_reads_a_step_only_when_the_next_is_under_way(self):
    self.meter.stepped(8, first := metrics(3.0), waited=0.0)
    self.read.assert_not_called()
    self.meter.stepped(10, metrics(2.0), waited=0.0)
    self.read.assert_called_once_with(first)
    self.assertEqual([r["step"] for r in self.records], [8])
    self.meter.flush()
    self.assertEqual([r["train/loss"] for r in self.records], [3.0, 2.0])

  def test_shares_are_shares(self):
    self.meter.stepped(8, metrics(3.0), waited=0.0)
    self.meter.flush()
    self.assertBetween(self.records[0]["data_wait_share"], 0.0, 1.0)
    self.assertGreater(self.records[0]["tokens_per_second"], 0)

  def test_bad_steps_are_named_and_one_too_many_ends_the_run(self):
    self.meter.stepped(9, metrics(math.nan, math.nan, skipped=4, targets=0), waited=0.0)
    self.meter.stepped(10, metrics(3.0, skipped=4), waited=0.0)
    self.meter.stepped(11, metrics(9.0, 4.0, skipped=5), waited=0.0)
    self.meter.flush()
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

    self.meter.stepped(12, metrics(1.0, math.inf, skipped=6), waited=0.0)
    with self.assertRaisesRegex(
      RunError,
      "the loss is 1 and its gradient's norm inf at step 12: stopped before .*"
      "max_skipped_steps is 5; last good checkpoint: step 7",
    ):
      self.meter.flush()
    self.assertLen(self.records, 3)


class ScanLayersTest(chex.TestCase):
  """How layers are compiled may change from one day to the next."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def train(self, name: str, num_steps: int, init_from: str = "", **model):
    """The losses of all steps until now, which are num_steps."""
    config = toy.get_config()
    small = dict(num_layers=2, num_heads=2, embed_dim=8, context_length=6)
    config.model.update(small, **model)
    config.init_from = init_from
    config.train.update(num_steps=num_steps, batch_size=8, log_every_steps=1)
    config.optimizer.update(name="adamw", warmup_steps=2)
    config.eval.update(num_windows=8, sample_tokens=0)
    experiment, self.dataset = parse(config)
    loop.train(experiment, self.dataset, self.folder / name)
    lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [r["train/loss"] for r in records if "train/loss" in r]

  def test_a_run_goes_on_with_or_without(self):
    stacked = dict(scan_layers=True, remat="dots")
    there = self.train("there", 3), self.train("there", 6, **stacked)
    back = self.train("back", 3, **stacked), self.train("back", 6)
    for losses, same in zip(there, back, strict=True):
      assert_close(losses, same, 3 * ROUNDINGS, dtype=np.float32)
    self.assertLen(there[1], 6)
    self.assertEqual(there[1][:3], there[0])

    (loss,) = self.train("tuned", 1, str(self.folder / "back"), **stacked)
    model, params, _ = load_run(self.folder / "back")
    batch = train_dataset(self.dataset, 8, seed=0)[0]
    total, count = summed_loss(model, params, batch)
    assert_close(loss, total / count)
