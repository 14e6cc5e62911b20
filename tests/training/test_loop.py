"""The loop's meter: reads one step behind, so that the device never waits for it."""

import json
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


def metrics(loss: float, grad_norm: float = 1.0) -> dict[str, float]:
  return {"train/loss": loss, "train/grad_norm": grad_norm}


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
    config.train.log_every_steps = 1
    experiment, _ = parse(config)
    self.meter = loop._Meter(experiment, writer, mock.Mock(), kept=7)

  def test_reads_a_step_only_when_the_next_is_under_way(self):
    self.meter.stepped(8, first := metrics(3.0), waited=0.0)
    self.read.assert_not_called()
    self.meter.stepped(9, metrics(2.0), waited=0.0)
    self.read.assert_called_once_with(first)
    self.assertEqual([r["step"] for r in self.records], [8])
    self.meter.flush()
    self.assertEqual([r["train/loss"] for r in self.records], [3.0, 2.0])

  def test_shares_are_shares(self):
    self.meter.stepped(8, metrics(3.0), waited=0.0)
    self.meter.flush()
    self.assertBetween(self.records[0]["data_wait_share"], 0.0, 1.0)
    self.assertGreater(self.records[0]["tokens_per_second"], 0)

  def test_a_loss_or_a_gradient_that_is_not_finite_ends_the_run(self):
    for bad in (metrics(float("nan")), metrics(1.0, float("inf"))):
      self.meter.stepped(8, bad, waited=0.0)
      with self.assertRaisesRegex(RunError, "at step 8: .*good checkpoint: step 7"):
        self.meter.flush()
      self.assertEqual(self.records, [])


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
      np.testing.assert_allclose(losses, same, rtol=1e-5)
    self.assertLen(there[1], 6)
    self.assertEqual(there[1][:3], there[0])

    (loss,) = self.train("tuned", 1, str(self.folder / "back"), **stacked)
    model, params, _ = load_run(self.folder / "back")
    batch = train_dataset(self.dataset, 8, seed=0)[0]
    total, count = summed_loss(model, params, batch)
    self.assertAlmostEqual(loss, float(total / count), places=5)
