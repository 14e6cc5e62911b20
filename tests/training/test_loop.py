"""The loop's meter: reads one step behind, so that the device never waits for it."""

import pathlib
import tempfile
from unittest import mock

import chex
import jax

from configs import toy
from gpt2_flax.errors import RunError
from gpt2_flax.training import loop
from gpt2_flax.training.config import parse
from gpt2_flax.training.metrics import MetricsWriter


def metrics(loss: float, grad_norm: float = 1.0) -> dict[str, float]:
  return {"train/loss": loss, "train/grad_norm": grad_norm}


class MeterTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    writer = self.enterContext(MetricsWriter(pathlib.Path(folder), start_step=0))
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
