"""Checkpoints come back bit for bit, or not at all."""

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

from gpt2_flax.errors import RunError
from gpt2_flax.training import checkpoints
from gpt2_flax.training.checkpoints import Checkpoints
from gpt2_flax.training.config import CheckpointConfig
from gpt2_flax.training.step import TrainState

KEEP_ALL = CheckpointConfig(every_steps=1, keep=10)


def state_at(step: int) -> TrainState:
  params = {"kernel": jax.random.normal(jax.random.key(step), (64, 33))}
  return TrainState(
    step=jnp.int32(step),
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
    temporary = tempfile.TemporaryDirectory()
    self.addCleanup(temporary.cleanup)
    self.folder = pathlib.Path(temporary.name) / "checkpoints"

  def save(self, *steps: int):
    with Checkpoints(self.folder, KEEP_ALL) as saver:
      for step in steps:
        saver.save(state_at(step), {"next_index": step}, {"model": {"x": 1}})
      saver.wait()

  def restore(self):
    """What comes back, and the warnings on the way."""
    with (
      mock.patch.object(logging, "warning") as warning,
      Checkpoints(self.folder, KEEP_ALL) as reader,
    ):
      return reader.restore(abstract()), warning.call_args_list

  def test_nothing_yet(self):
    self.assertEqual(self.restore(), (None, []))

  def test_the_newest_comes_back_bit_for_bit(self):
    self.save(1, 2)
    (state, position), warnings = self.restore()
    chex.assert_trees_all_equal(bits(state), bits(state_at(2)))
    self.assertEqual(position, {"next_index": 2})
    self.assertEqual(warnings, [])

  def test_only_the_latest_are_kept(self):
    with Checkpoints(self.folder, CheckpointConfig(every_steps=1, keep=2)) as saver:
      for step in (1, 2, 3):
        saver.save(state_at(step), {}, {})
      saver.wait()
    self.assertEqual(sorted(p.name for p in self.folder.iterdir()), ["2", "3"])

  def test_any_damage_to_the_newest_is_noticed(self):
    self.save(1, 2)
    whole = self.folder.with_name("whole")
    shutil.copytree(self.folder, whole)
    files = [p.relative_to(whole) for p in (whole / "2").rglob("*") if p.is_file()]
    self.assertGreater(len(files), 8)

    def truncate(content: bytes) -> bytes:
      return content[: len(content) // 2]

    def flip(content: bytes) -> bytes:
      middle = len(content) // 2
      return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]

    set_aside = 0
    for file in files:
      for damage in (truncate, flip, None):
        with self.subTest(file=str(file), damage=damage):
          shutil.rmtree(self.folder)
          shutil.copytree(whole, self.folder)
          damaged = self.folder / file
          if damage is None:
            damaged.unlink()
          else:
            damaged.write_bytes(damage(damaged.read_bytes()))
          (state, position), warnings = self.restore()
          step = int(state.step)
          # Damage where nothing that counts is stored leaves the newest usable; what
          # must never happen is a state that is neither the one nor the other.
          self.assertIn(step, (1, 2))
          chex.assert_trees_all_equal(bits(state), bits(state_at(step)))
          self.assertEqual(position, {"next_index": step})
          if step == 1:
            set_aside += 1
            self.assertIn("damaged", warnings[0].args[0])
            self.assertTrue((self.folder / "2.damaged").exists())
    self.assertGreater(set_aside, len(files))

  def test_an_array_changed_on_disk_is_named(self):
    self.save(1, 2)
    wrong = state_at(2)
    wrong.params["params"]["kernel"] = (
      wrong.params["params"]["kernel"].at[3, 4].add(1e-6)
    )
    right = jax.device_get(checkpoints._fingerprints(state_at(2)))
    shutil.rmtree(self.folder / "2")
    with (
      mock.patch.object(checkpoints, "_fingerprints", return_value=right),
      Checkpoints(self.folder, KEEP_ALL) as saver,
    ):
      saver.save(wrong, {}, {})
      saver.wait()
    (state, _), warnings = self.restore()
    self.assertEqual(int(state.step), 1)
    self.assertIn("params/kernel is not what was saved", warnings[0].args[2])

  def test_all_damaged_is_an_error_and_nothing_is_deleted(self):
    self.save(1, 2)
    for step in (1, 2):
      for file in (self.folder / str(step) / "state").rglob("*"):
        if file.is_file():
          file.write_bytes(b"")
    with self.assertRaisesRegex(RunError, "all 2 checkpoints"):
      self.restore()
    self.assertTrue((self.folder / "1.damaged").exists())

  def test_an_unfinished_save_does_not_count(self):
    self.save(1)
    unfinished = self.folder / "2.orbax-checkpoint-tmp"
    shutil.copytree(self.folder / "1", unfinished)
    (unfinished / "commit_success.txt").unlink()
    (state, _), _ = self.restore()
    self.assertEqual(int(state.step), 1)

  @parameterized.parameters(jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8)
  def test_one_flipped_bit_changes_a_fingerprint(self, dtype):
    leaf = jnp.arange(50).astype(dtype)
    (before,) = checkpoints._fingerprints([leaf])
    unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
    raw = jax.lax.bitcast_convert_type(leaf, unsigned)
    for element in (0, 17, 49):
      for bit in range(8 * leaf.dtype.itemsize):
        flipped = raw.at[element].set(raw[element] ^ jnp.array(1 << bit, unsigned))
        changed = jax.lax.bitcast_convert_type(flipped, leaf.dtype)
        self.assertNotEqual(checkpoints._fingerprints([changed])[0], before)
