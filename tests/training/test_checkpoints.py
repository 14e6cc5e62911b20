"""Checkpoints come back bit for bit, or not at all."""

import hashlib
import pathlib
import shutil
import tempfile
from unittest import mock

from absl import logging
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import optax

from gpt2_flax.errors import InputError, RunError
from gpt2_flax.training.checkpoints import Checkpoints
from gpt2_flax.training.config import CheckpointConfig
from gpt2_flax.training.kept import read_params, saved_steps
from gpt2_flax.training.manifest import MANIFEST
from gpt2_flax.training.step import TrainState

KEEP_ALL = CheckpointConfig(every_steps=1, keep=10)


def state_at(step: int) -> TrainState:
  params = {"kernel": jax.random.normal(jax.random.key(step), (64, 33))}
  return TrainState(
    step=jnp.int32(step),
    skipped=jnp.int32(0),
    loss_mean=jnp.float32(2.5),
    params={"params": params},
    opt_state=optax.adam(0.1).init(params),
    rng=jax.random.key(7),
  )


def bits(state: TrainState):
  return jax.device_get(state.replace(rng=jax.random.key_data(state.rng)))


def abstract() -> TrainState:
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), state_at(0)
  )


class CheckpointsTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    temporary = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(temporary) / "checkpoints"

  def save(self, *steps: int):
    with Checkpoints(self.folder, KEEP_ALL) as saver:
      for step in steps:
        saver.save(state_at(step), {"next_index": step}, {"model": {"x": 1}})
      saver.wait()

  def restore(self, like: TrainState | None = None):
    """What comes back, and the warnings on the way."""
    with (
      mock.patch.object(logging, "warning") as warning,
      Checkpoints(self.folder, KEEP_ALL) as reader,
    ):
      return reader.restore(like or abstract()), warning.call_args_list

  def test_nothing_yet(self):
    self.assertEqual(self.restore(), (None, []))

  def test_the_newest_comes_back_bit_for_bit(self):
    self.save(1, 2)
    (state, position), warnings = self.restore()
    chex.assert_trees_all_equal(bits(state), bits(state_at(2)))
    self.assertEqual(position, {"next_index": 2})
    self.assertEqual(warnings, [])

  @parameterized.parameters(((64, 33), "bfloat16"), ((64, 34), "float32"))
  def test_another_array_is_refused_and_named(self, shape, dtype):
    self.save(1)
    kernel = jax.ShapeDtypeStruct(shape, dtype)
    other = abstract().replace(params={"params": {"kernel": kernel}})
    with self.assertRaisesRegex(
      InputError, rf"kernel.* float32\[64, 33\].* {dtype}\[{shape[0]}, {shape[1]}\]"
    ):
      self.restore(other)

  def test_only_the_latest_are_kept(self):
    with Checkpoints(self.folder, CheckpointConfig(every_steps=1, keep=2)) as saver:
      for step in (1, 2, 3):
        saver.save(state_at(step), {}, {})
      saver.wait()
    self.assertEqual(sorted(p.name for p in self.folder.iterdir()), ["2", "3"])

  def test_later_ones_are_dropped_whole_and_come_again(self):
    with Checkpoints(self.folder, KEEP_ALL) as saver:
      for step in (1, 2, 3, 4):
        saver.save(state_at(step), {}, {})
      saver.wait()
      killed = mock.patch.object(shutil, "rmtree", side_effect=KeyboardInterrupt)
      with killed, self.assertRaises(KeyboardInterrupt):
        saver.drop_after(2)
    whole = sorted(saved_steps(self.folder))
    self.assertIn(whole, ([1, 2, 3], [1, 2, 4]))
    for step in whole:
      self.assertTrue((self.folder / str(step) / MANIFEST).exists())
    with Checkpoints(self.folder, KEEP_ALL) as saver:
      saver.drop_after(2)
      self.assertEqual(saver.latest_step(), 2)
      self.assertEqual(list(saved_steps(self.folder)), [1, 2])
      saver.save(state_at(3), {}, {})
    names = sorted(path.name for path in self.folder.iterdir())
    self.assertEqual(names, ["1", "2", "3"])

  def test_the_manifest_is_what_sha256sum_says(self):
    self.save(1)
    folder = self.folder / "1"
    found = (folder / MANIFEST).read_text().splitlines()
    expected = [
      f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}"
      for path in folder.rglob("*")
      if path.is_file() and path.name != MANIFEST
    ]
    self.assertCountEqual(found, expected)
    self.assertGreater(len(found), 8)

  def test_without_its_checksums_it_is_damaged(self):
    self.save(1, 2)
    (self.folder / "2" / MANIFEST).unlink()
    (state, _), (warning,) = self.restore()
    chex.assert_trees_all_equal(bits(state), bits(state_at(1)))
    self.assertIn(f"{MANIFEST}: No such file", warning.args[2])

  def test_in_place_of_the_damaged_its_step_is_saved_anew(self):
    self.save(1, 2)
    (self.folder / "2" / "state" / "_METADATA").unlink()
    with (
      mock.patch.object(logging, "warning"),
      Checkpoints(self.folder, KEEP_ALL) as checkpoints,
    ):
      state, _ = checkpoints.restore(abstract())
      chex.assert_trees_all_equal(bits(state), bits(state_at(1)))
      checkpoints.save(state_at(2), {}, {})
      checkpoints.wait()
    self.assertEqual([*saved_steps(self.folder)], [1, 2])

  def test_the_damaged_is_set_aside_each_time(self):
    for _ in range(3):
      self.save(*(step for step in (1, 2) if not (self.folder / str(step)).exists()))
      (self.folder / "2" / "state" / "_METADATA").unlink()
      (state, position), (warning,) = self.restore()
      self.assertEqual((int(state.step), position), (1, {"next_index": 1}))
      self.assertIn("state/_METADATA is not as", warning.args[2])
    kept = sorted(path.name for path in self.folder.iterdir())
    self.assertEqual(kept, ["1", "2.damaged", "2.damaged_", "2.damaged__"])

  def test_reading_only_changes_nothing(self):
    self.save(1, 2)
    (self.folder / "2" / "about" / "metadata").unlink()
    # what the run, which goes on, has not finished to write
    shutil.copytree(self.folder / "1", self.folder / "3.orbax-checkpoint-tmp")
    before = sorted(self.folder.rglob("*"))
    with mock.patch.object(logging, "warning") as warning:
      params = read_params(self.folder, abstract().params)
    chex.assert_trees_all_equal(params, state_at(1).params)
    warning.assert_called_once()
    with self.assertRaisesRegex(RunError, "2 is damaged .*about/metadata"):
      read_params(self.folder, abstract().params, step=2)
    self.assertEqual(sorted(self.folder.rglob("*")), before)

  def test_what_is_kept_for_good_stays_beside_the_latest(self):
    config = CheckpointConfig(every_steps=1, keep=2, keep_steps="0, 1,7")
    for last in (2, 5):  # the second goes on where the first was interrupted
      with Checkpoints(self.folder, config) as saver:
        for step in range(last):
          if config.stays(step):
            saver.keep(step, state_at(step).params, {"model": {"x": 1}})
          if step:
            saver.save(state_at(step), {"next_index": step}, {})
        saver.wait()
    self.assertEqual(list(saved_steps(self.folder)), [0, 1, 3, 4])
    for step in (0, 1, 4):
      params = read_params(self.folder, abstract().params, step)
      chex.assert_trees_all_equal(params, state_at(step).params)
    with self.assertRaisesRegex(InputError, "step is 2: .* has 0, 1, 3, 4"):
      read_params(self.folder, abstract().params, step=2)
    (file,) = (self.folder / "history" / "1" / "state").glob("_METADATA")
    file.write_bytes(file.read_bytes() + b" ")
    with self.assertRaisesRegex(RunError, "history/1 is damaged .*_METADATA"):
      read_params(self.folder, abstract().params, step=1)

  @parameterized.parameters(
    ("", []),
    ("log2", [0, 1, 2, 4, 8]),
    ("3,5", [3, 5]),
  )
  def test_steps_that_stay(self, keep_steps, expected):
    config = CheckpointConfig(every_steps=1, keep=2, keep_steps=keep_steps)
    self.assertEqual([step for step in range(10) if config.stays(step)], expected)

  @parameterized.parameters("log", "1,,2", "-1", "1;2", "all")
  def test_steps_that_are_none(self, keep_steps):
    with self.assertRaisesRegex(InputError, "checkpoint.keep_steps is .*: must be emp"):
      CheckpointConfig(every_steps=1, keep=2, keep_steps=keep_steps)

  def test_all_damaged_is_an_error_and_nothing_is_deleted(self):
    self.save(1, 2)
    for step in (1, 2):
      for file in (self.folder / str(step) / "state").rglob("*"):
        if file.is_file():
          file.write_bytes(b"")
    for _ in range(2):  # the second time too: nothing begins anew in silence
      with self.assertRaisesRegex(RunError, "all checkpoints in .* are damaged"):
        self.restore()
    self.assertTrue((self.folder / "1.damaged").exists())

  def test_an_unfinished_save_does_not_count(self):
    self.save(1)
    unfinished = self.folder / "2.orbax-checkpoint-tmp"
    shutil.copytree(self.folder / "1", unfinished)
    (unfinished / MANIFEST).unlink()
    (state, _), _ = self.restore()
    self.assertEqual(int(state.step), 1)
    self.assertEqual([path.name for path in self.folder.iterdir()], ["1"])
