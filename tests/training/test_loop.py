"""Whole runs, with their layers stacked or apart."""

import functools
import json
import pathlib
import tempfile

import chex
import jax
import numpy as np
import pytest

from configs import toy
from gpt2_flax.datasets.pipeline import train_dataset
from gpt2_flax.training import loop
from gpt2_flax.training.experiment import parse
from gpt2_flax.training.loss import summed_loss
from gpt2_flax.training.source import load_run
from tests.close import assert_close, ROUNDINGS

STACKED = dict(scan_layers=True, remat="dots")


class ScanLayersTest(chex.TestCase):
  """How layers are compiled may change from one day to the next."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def train(self, name: str, num_steps: int, init_from="", writes=0, **model):
    """The losses of all steps until now, which are num_steps."""
    config = toy.get_config()
    small = dict(num_layers=2, num_heads=2, embed_dim=8, context_length=6)
    config.model.update(small, **model)
    config.init_from = init_from
    config.train.update(num_steps=num_steps, batch_size=8, log_every_steps=1)
    config.optimizer.update(name="adamw", warmup_steps=2)
    config.eval.update(num_windows=8, sample_tokens=writes)
    experiment, self.dataset = parse(config)
    loop.train(experiment, self.dataset, self.folder / name)
    lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [r["train/loss"] for r in records if "train/loss" in r]

  def test_a_run_of_stacked_layers_opens_with_layers_apart(self):
    self.train("stacked", 2, writes=2, **STACKED)
    model, params, _ = load_run(self.folder / "stacked")
    batch = train_dataset(self.dataset, 8, seed=0)[2]
    total, count = jax.jit(functools.partial(summed_loss, model))(params, batch)
    losses = self.train("stacked", 3, **STACKED)
    assert_close(losses[2], total / count)

  @pytest.mark.slow
  def test_a_run_goes_on_with_or_without(self):
    there = self.train("there", 3), self.train("there", 6, **STACKED)
    back = self.train("back", 3, **STACKED), self.train("back", 6)
    for losses, same in zip(there, back, strict=True):
      assert_close(losses, same, 3 * ROUNDINGS, dtype=np.float32)
    self.assertLen(there[1], 6)
    self.assertEqual(there[1][:3], there[0])

    (loss,) = self.train("tuned", 1, str(self.folder / "back"), **STACKED)
    model, params, _ = load_run(self.folder / "back")
    batch = train_dataset(self.dataset, 8, seed=0)[0]
    total, count = summed_loss(model, params, batch)
    assert_close(loss, total / count)
