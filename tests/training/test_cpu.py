"""Devices that are threads of a CPU: as many as a mesh asks for."""

import json
import os
import pathlib
import shutil
import tempfile

import chex
import numpy as np
import pytest

from gpt2_flax.training import cpu
from gpt2_flax.training.source import load_run
from tests import forked
from tests.close import assert_close, ROUNDINGS
from tests.reliability.runs import complaints, records, when_trained

NOT_SAID = dict(JAX_NUM_CPU_DEVICES="-1")  # as where nobody sets it


FOUR = {"mesh.data": 4}
SET_UP = """
import json, os, sys
import jax
from configs import toy
from gpt2_flax.training import cpu
from gpt2_flax.training.experiment import parse

changes, kwargs = map(json.loads, sys.argv[1:])
configs = []
for change in changes:
  config = toy.get_config()
  config.update_from_flattened_dict(change)
  configs.append(parse(config)[0])
cpu.set_up(*configs, **kwargs)
flags = os.environ["XLA_FLAGS"].split()
print(jax.device_count(), os.environ.get("NPROC"), *flags)
"""


class SetUpTest(chex.TestCase):
  def set_up(self, changes=({},), *, environment=NOT_SAID, **kwargs):
    """The number of devices and of XLA's threads, and what XLA is told besides."""
    args = map(json.dumps, (changes, kwargs))
    done = forked.finish(forked.start("-c", SET_UP, *args, **environment))
    self.assertEqual(done.returncode, 0, done.stderr)
    number, threads, *flags = done.stdout.split()
    return int(number), threads, {*flags} - {*os.environ["XLA_FLAGS"].split()}

  def test_as_many_as_a_mesh_asks_for(self):
    asked = {"mesh.data": 2, "mesh.fsdp": 3, "mesh.tensor": 5}
    self.assertEqual(self.set_up((asked,))[0], 30)
    self.assertEqual(self.set_up(), (1, "None", set()))
    # more threads than devices, and all the time they need
    self.assertEqual(self.set_up((FOUR, {})), (4, "10", {cpu.PATIENCE}))

  def test_what_is_said_holds(self):
    self.assertEqual(self.set_up((FOUR,), environment={}), (1, "None", set()))
    said = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    found = self.set_up((FOUR,), environment=NOT_SAID | said)
    self.assertEqual(found, (3, "None", {said["XLA_FLAGS"]}))
    found = self.set_up((FOUR,), environment=NOT_SAID | {"NPROC": "7"})
    self.assertEqual(found[:2], (4, "7"))
    self.assertEqual(self.set_up((FOUR,), alone=False), (1, "None", set()))

  def test_memory_first_where_some_is_to_be_saved(self):
    found = self.set_up((FOUR, {"model.remat": "full"}))
    self.assertEqual(found, (4, "10", {cpu.PATIENCE, cpu.MEMORY_FIRST}))


FOUR_DEVICES = "--config.mesh.data=4"


class TrainTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def train(self, name, *flags):
    small = dict(num_layers=1, num_heads=2, embed_dim=8, context_length=8)
    values = {f"model.{key}": value for key, value in small.items()}
    values |= {"train.num_steps": 8, "train.batch_size": 12}
    values |= {"train.log_every_steps": 1, "eval.num_windows": 10}
    values |= {"eval.every_steps": 4, "checkpoint.every_steps": 4}
    values |= {"eval.sample_tokens": 0}
    given = [f"--config.{key}={value}" for key, value in values.items()]
    folder = f"--workdir={self.folder / name}"
    done = forked.finish(forked.start("train.py", folder, *given, *flags, **NOT_SAID))
    self.assertEqual((done.returncode, complaints(done)), (0, []))
    return done.stdout

  def values(self, name, key):
    return np.array([r[key] for r in records(self.folder / name) if key in r])

  def test_it_gets_as_many_as_it_asks_for(self):
    flags = f"--workdir={self.folder}", FOUR_DEVICES
    self.assertEqual(when_trained("jax.device_count()", *flags, **NOT_SAID), "4")

  @pytest.mark.slow  # eight_devices.py compares meshes with one device
  def test_they_share_the_batch(self):
    self.assertIn("4 device(s) of 1", self.train("four", FOUR_DEVICES))
    self.assertIn("1 device(s) of 1", self.train("one"))
    for key in ("train/loss", "val/loss"):
      found, expected = (self.values(name, key) for name in ("four", "one"))
      assert_close(found, expected, 3 * ROUNDINGS, dtype=np.float32)

  @pytest.mark.slow
  def test_they_go_on_with_the_same_bits(self):
    self.train("whole", FOUR_DEVICES)
    shutil.copytree(self.folder / "whole", self.folder / "parts")
    shutil.rmtree(self.folder / "parts" / "checkpoints" / "8")
    self.assertIn("goes on from step 4 of 8", self.train("parts", FOUR_DEVICES))
    (_, found, _), (_, expected, _) = (
      load_run(self.folder / name) for name in ("parts", "whole")
    )
    chex.assert_trees_all_equal(found, expected)
    for key in ("train/loss", "val/loss"):
      np.testing.assert_array_equal(
        self.values("parts", key), self.values("whole", key)
      )
