"""A damaged checkpoint is noticed, whatever happened to whichever of its files."""

from collections.abc import Callable
import functools
import pathlib
import random
import shutil
from unittest import mock

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gpt2_flax import GPT2, GPT2Config
from gpt2_flax.training.checkpoints import Checkpoints
from gpt2_flax.training.config import CheckpointConfig
from gpt2_flax.training.mesh import one_device_mesh
from gpt2_flax.training.step import abstract_state, init_state, TrainState
from tests.reliability.campaign import Tally

KEEP = CheckpointConfig(every_steps=1, keep=2)
MODEL = GPT2(
  GPT2Config(vocab_size=11, context_length=8, num_layers=1, num_heads=2, embed_dim=8)
)
OPTIMIZER = optax.adamw(1e-3)
FLIPS = 40  # random bits of each file, in the full campaign


def any_damage(folder: pathlib.Path, chance: random.Random, full: bool) -> Tally:
  """Row 5: the newest checkpoint is damaged, the one before it comes back."""
  tally = Tally()
  abstract = abstract_state(MODEL, OPTIMIZER, one_device_mesh())
  states = {
    step: init_state(MODEL, OPTIMIZER, jax.random.key(step), abstract).replace(
      step=jnp.int32(step)
    )
    for step in (1, 2)
  }
  whole, run = folder / "whole", folder / "run"
  with Checkpoints(whole, KEEP) as checkpoints:
    for step, state in states.items():
      checkpoints.save(state, {"next_index": step}, {})
  files = sorted(path for path in (whole / "2").rglob("*") if path.is_file())
  damages = [_cut_in_half, _empty, pathlib.Path.unlink]
  damages += [functools.partial(_flip_a_bit, chance)] * (FLIPS if full else 1)
  for file in files:
    for damage in damages if full else chance.sample(damages, 1):
      shutil.rmtree(run, ignore_errors=True)
      shutil.copytree(whole, run)
      name = file.relative_to(whole)
      done = _name(damage), damage(run / name)
      with tally.attempt(f"{name} {done}"):
        _assert_the_one_before(run, abstract, states[1])
  tally.measured = f"{len(files)} files"
  return tally


def _assert_the_one_before(
  run: pathlib.Path, abstract: TrainState, expected: TrainState
) -> None:
  with (
    mock.patch.object(logging.get_absl_logger(), "callHandlers") as heard,
    Checkpoints(run, KEEP) as checkpoints,
  ):
    state, position = checkpoints.restore(abstract)
  assert position == {"next_index": 1}, position
  for leaf, other in zip(_bits(state), _bits(expected), strict=True):
    np.testing.assert_array_equal(leaf, other)
  said = [call.args[0].getMessage() for call in heard.call_args_list]
  assert len(said) == 1, said
  assert said[0].startswith(f"checkpoint {run / '2'} is damaged"), said
  assert (run / "2.damaged").exists(), "it is not set aside"


def _bits(state: TrainState) -> list[np.ndarray]:
  return jax.device_get(
    jax.tree.leaves(state.replace(rng=jax.random.key_data(state.rng)))
  )


def _cut_in_half(path: pathlib.Path) -> None:
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: pathlib.Path) -> None:
  path.write_bytes(b"")


def _flip_a_bit(chance: random.Random, path: pathlib.Path) -> int:
  """Which one it was."""
  content = bytearray(path.read_bytes())
  bit = chance.randrange(8 * len(content))
  content[bit // 8] ^= 1 << bit % 8
  path.write_bytes(content)
  return bit


def _name(damage: Callable) -> str:
  return getattr(damage, "func", damage).__name__
