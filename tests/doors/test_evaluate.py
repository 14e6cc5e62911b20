"""Prompts and completions through all doors; the run goes on, also on two devices."""

import json
import pathlib
import shutil
import tempfile

import chex
import numpy as np
import pytest

from tests import forked
from tests.close import assert_close, ROUNDINGS
from tests.reliability.runs import digest, records

CONFIG = """
from ml_collections import ConfigDict
from configs import text

def get_config():
  config = text.get_config()
  with config.unlocked():
    config.data = ConfigDict()
    config.data.name = "completions"
    config.data.path = ""
    config.data.tokenizer = "bpe"
    config.data.bpe_vocab_size = 270
  config.model.update(
    num_layers=1, embed_dim=16, num_heads=2, context_length=32, dropout_rate=0.0
  )
  config.train.update(num_steps=8, batch_size=4, accumulation_steps=2)
  config.eval.update(every_steps=8, sample_tokens=4)
  config.checkpoint.every_steps = 4
  return config
"""


class CompletionsTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (self.folder / "answers.py").write_text(CONFIG)
    with (self.folder / "lines.jsonl").open("w") as file:
      for i in range(60):
        print(json.dumps({"prompt": f"{i} =", "completion": f" {i}"}), file=file)

  def call(self, door: str, run: str, *flags: str, **environment: str):
    done = forked.finish(
      forked.start(door, f"--workdir={self.folder / run}", *flags, **environment)
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    return done

  def train(self, run: str, **environment: str):
    config = f"--config={self.folder / 'answers.py'}"
    path = f"--config.data.path={self.folder / 'lines.jsonl'}"
    return self.call("train.py", run, config, path, **environment)

  def loss(self, run: str) -> float:
    return [r["val/loss"] for r in records(self.folder / run) if "val/loss" in r][-1]

  def test_trains_is_measured_and_writes(self):
    self.assertIn("  writes: 54 =", self.train("run").stdout)
    measured = self.call("evaluate.py", "run")
    found = json.loads(measured.stdout.splitlines()[-1])
    self.assertEqual(found["loss"], round(self.loss("run"), 5))
    written = self.call("sample.py", "run", "--prompt=7 =", "--num_tokens=3")
    self.assertStartsWith(written.stdout, "7 =")
    self.assertIn("wrote ", self.call("explain.py", "run").stdout)

  @pytest.mark.slow  # doors/test_train.py goes on
  def test_goes_on(self):
    self.train("run")
    expected = digest(self.folder / "run")
    shutil.rmtree(self.folder / "run" / "checkpoints" / "8")
    self.assertIn("goes on from step 4 of 8", self.train("run").stdout)
    self.assertEqual(digest(self.folder / "run"), expected)

  @pytest.mark.slow  # training/eight_devices.py trains on meshes, with documents too
  def test_on_two_devices_it_trains_as_on_one(self):
    self.train("run")
    self.train("run_on_two", **forked.on_devices(2))
    both = np.array([self.loss("run_on_two"), self.loss("run")])
    assert_close(both[0], both[1], 3 * ROUNDINGS, dtype=np.float32)
