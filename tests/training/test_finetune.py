"""Whole runs with adapters: what they keep, how they go on, and how they open."""

import json
import os
import pathlib
import shutil
import signal
import tempfile
from unittest import mock

import chex
import jax
import numpy as np
import pytest

from configs import toy
from gpt2_flax import load
from gpt2_flax.errors import InputError, RunError
from gpt2_flax.training import adapter_folder, loop
from gpt2_flax.training.evaluation import Evaluator
from gpt2_flax.training.experiment import parse
from gpt2_flax.training.lora import by_name
from gpt2_flax.training.mesh import batch_sharding, one_device_mesh
from gpt2_flax.training.source import load_dataset, read_run_config
from tests.close import assert_close

SOME = "*/query/kernel,blocks_0/*/expand/kernel"
STEPS = 4


def train(workdir: pathlib.Path, init_from: pathlib.Path | str = "", **finetune):
  config = toy.get_config()
  config.init_from = str(init_from)
  config.train.seed = 0 if init_from else 5  # else they begin alike
  config.model.update(num_layers=2, num_heads=2, embed_dim=8, context_length=6)
  config.model.update(positional_encoding="learned", dropout_rate=0.1)
  config.optimizer.update(name="adamw", warmup_steps=0, learning_rate=0.1)
  config.train.update(num_steps=STEPS, batch_size=8, accumulation_steps=2)
  config.eval.update(num_windows=8, sample_tokens=0)
  config.checkpoint.update(every_steps=2, keep=9, keep_steps="0,1")
  config.finetune.update(finetune)
  return loop.train(*parse(config), workdir)


def flat(source, step=None):
  """The parameters by their names."""
  return jax.device_get(by_name(load(source, step)[1]))


class LoraRunTest(chex.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    cls.base = pathlib.Path(os.path.relpath(folder / "base"))
    cls.tuned = folder / "run"
    with mock.patch.object(loop.StopSignals, "agreed", return_value=signal.SIGTERM):
      train(cls.base)  # stopped before its first step
    cls.result = train(cls.tuned, cls.base, lora=SOME, lora_rank=3)

  def copy(self) -> pathlib.Path:
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    return shutil.copytree(self.tuned, folder / "run")

  def test_its_adapters_are_merged_into_its_base_when_it_is_opened(self):
    base, found = flat(self.base), flat(self.tuned)
    changed = {name for name in base if not np.array_equal(base[name], found[name])}
    kernels = {f"blocks_{layer}/attention/heads/query/kernel" for layer in (0, 1)}
    self.assertEqual(changed, kernels | {"blocks_0/feed_forward/expand/kernel"})
    chex.assert_trees_all_equal(flat(self.tuned, step=0), base)

  def test_it_is_evaluated_with_them(self):
    model, params, _ = load(self.tuned)
    sharding = batch_sharding(one_device_mesh())
    evaluator = Evaluator(
      model, load_dataset(self.tuned), read_run_config(self.tuned), sharding
    )
    found, expected = self.result.metrics["val/loss"], evaluator.losses(params)
    assert_close(found, expected["val/loss"], dtype=np.float32)

  def test_the_base_is_kept_once_and_no_checkpoint_has_it(self):
    folder = self.tuned / "checkpoints"
    names = {path.name for path in folder.iterdir()}
    self.assertEqual(names, {"2", "4", "frozen", "history"})
    about = (folder / "4" / "about" / "metadata").read_text()
    self.assertIn("lora_A", about)
    self.assertNotIn("token_embedding", about)

  def test_interrupted_it_goes_on_with_the_same_bits(self):
    workdir = self.copy()
    shutil.rmtree(workdir / "checkpoints" / "4")
    train(workdir, self.base, lora=SOME, lora_rank=3)
    self.assert_same(workdir)

  def test_killed_before_its_first_checkpoint_it_begins_anew(self):
    workdir = self.copy()
    for name in ("2", "4", "history"):
      shutil.rmtree(workdir / "checkpoints" / name)
    for path in (workdir / "checkpoints" / "frozen").rglob("*"):
      if path.is_file():
        path.write_bytes(b"half")
    train(workdir, self.base, lora=SOME, lora_rank=3)
    self.assert_same(workdir)

  def assert_same(self, workdir):
    chex.assert_trees_all_equal(flat(workdir), flat(self.tuned))
    weights = pathlib.Path("adapter", adapter_folder.WEIGHTS)
    self.assertEqual(
      (workdir / weights).read_bytes(), (self.tuned / weights).read_bytes()
    )

  def test_a_damaged_base_is_named(self):
    workdir = self.copy()
    frozen = workdir / "checkpoints" / "frozen" / "0"
    (frozen / "about" / "metadata").write_text("{}")
    for use in (load, lambda run: train(run, self.base, lora=SOME, lora_rank=3)):
      with self.assertRaisesRegex(RunError, "checkpoints/frozen/0 is damaged"):
        use(workdir)

  def test_what_learns_may_not_change(self):
    with self.assertRaisesRegex(
      InputError, "config.finetune.lora_rank was 3, is now 2"
    ):
      train(self.tuned, self.base, lora=SOME, lora_rank=2)

  def test_a_pattern_that_matches_nothing_is_refused_with_nothing_written(self):
    workdir = self.base.with_name("none")
    with self.assertRaisesRegex(InputError, "unknown pattern in finetune.lora"):
      train(workdir, self.base, lora="*/querry/kernel")
    self.assertFalse(workdir.exists())

  def test_its_adapters_alone_open_beside_the_base(self):
    found, expected = flat(self.tuned / "adapter"), flat(self.tuned)
    assert_close(found, expected, 2 * (3 + 2))  # as many as a merged value has
    with self.assertRaisesRegex(InputError, "step is 2: .*adapter is no run"):
      load(self.tuned / "adapter", step=2)
    about = self.copy() / "adapter" / adapter_folder.CONFIG
    said = json.loads(about.read_text())
    self.assertEqual(
      said["base_model_name_or_path"], str(self.base.absolute().resolve())
    )
    about.write_text(json.dumps(said | {"base_model_name_or_path": "not/there/now"}))
    with self.assertRaisesRegex(
      InputError, r"_config\.json: base_model_name_or_path is not .*: not/there/now: th"
    ):
      load(about.parent)

  def learn_a_part(self) -> pathlib.Path:
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    train(folder / "run", self.base, train="blocks_*", layer_decay=0.5)
    return folder

  def test_a_part_learns(self):
    folder = self.learn_a_part()
    base, found = flat(self.base), flat(folder / "run")
    changed = {name for name in base if not np.array_equal(base[name], found[name])}
    self.assertEqual(changed, {name for name in base if name.startswith("blocks_")})
    for block, rate in (("blocks_0/", 0.05), ("blocks_1/", 0.1)):
      first = flat(folder / "run", step=1)  # of Adam: the rate, where there is a slope
      steps = [np.abs(first[k] - base[k]).max() for k in base if k.startswith(block)]
      self.assertAlmostEqual(max(steps), rate, delta=0.05 * rate)
    self.assertFalse((folder / "run" / "adapter").exists())

  @pytest.mark.slow
  def test_a_part_goes_on(self):
    folder = self.learn_a_part()
    found = flat(folder / "run")
    shutil.rmtree(folder / "run" / "checkpoints" / "4")
    train(folder / "run", self.base, train="blocks_*", layer_decay=0.5)
    chex.assert_trees_all_equal(flat(folder / "run"), found)
