"""A checkpoint of one mesh goes on on every other.

Needs eight devices, so the row starts this module in a process of its own.
"""

import itertools
import json
import math
import pathlib
import random
import sys

import jax
import numpy as np

from configs import toy
from gpt2_flax.datasets.pipeline import train_dataset
from gpt2_flax.training.checkpoints import Checkpoints
from gpt2_flax.training.config import CheckpointConfig
from gpt2_flax.training.experiment import parse
from gpt2_flax.training.mesh import batch_sharding, spread_over
from gpt2_flax.training.optimizer import learning_rate_schedule, make_optimizer
from gpt2_flax.training.step import (
  abstract_state,
  init_state,
  make_train_step,
  shardings,
  TrainState,
)
from gpt2_flax.transformer import GPT2
from tests import forked
from tests.close import ROUNDINGS
from tests.reliability.campaign import Tally
from tests.reliability.runs import digest_of

Shape = tuple[int, int, int]  # (data, fsdp, tensor), of 1, 2, 4 and 8 devices
SHAPES: list[Shape] = [
  s for s in itertools.product((1, 2, 4, 8), repeat=3) if math.prod(s) <= 8
]
SAVED_AT, FOLLOWING = 3, 10  # steps before the checkpoint, and after it
ACCUMULATION = 2
TOLERANCE = 3 * ROUNDINGS * 2**-24  # of a loss, relative: see tests/close.py


def across_meshes(folder: pathlib.Path, chance: random.Random, full: bool) -> Tally:
  """Row 8: all shapes save, restore and go on; else two do, and one more restores."""
  shapes = SHAPES if full else [SHAPES[0], *chance.sample(SHAPES[1:], 2)]
  trained = len(SHAPES) if full else 2
  arguments = str(folder), json.dumps(shapes), str(trained)
  done = forked.finish(forked.start("-m", __name__, *arguments, **forked.on_devices(8)))
  assert done.returncode == 0, done.stderr
  tally = Tally()
  vars(tally).update(json.loads(done.stdout.splitlines()[-1]))
  return tally


class _Trainer:
  """What trains the tiny model on a mesh of this shape."""

  def __init__(self, shape: Shape):
    values = toy.get_config()
    values.model.update(num_layers=1, num_heads=8, embed_dim=32, context_length=12)
    values.model.dropout_rate = 0.1
    values.optimizer.warmup_steps = 2
    values.train.update(num_steps=SAVED_AT + FOLLOWING, batch_size=16)
    config, dataset = parse(values)
    self.model = GPT2(config.model)
    schedule = learning_rate_schedule(config.optimizer, config.train.num_steps)
    self.optimizer = make_optimizer(config.optimizer, schedule)
    devices = np.array(jax.devices()[: math.prod(shape)]).reshape(shape)
    self.mesh = jax.sharding.Mesh(devices, ("data", "fsdp", "tensor"))
    self.abstract = abstract_state(self.model, self.optimizer, self.mesh)
    self._step = make_train_step(
      self.model, self.optimizer, schedule, self.abstract, ACCUMULATION
    )
    self._batches = train_dataset(dataset, 16, seed=0)

  def train(self, state: TrainState, num_steps: int) -> tuple[TrainState, np.ndarray]:
    """The state after some more steps, and the loss of each; `state` is used up."""
    losses = []
    with spread_over(self.mesh):
      for step in range(int(state.step), int(state.step) + num_steps):
        batch = jax.device_put(self._batches[step], batch_sharding(self.mesh))
        state, metrics = self._step(state, batch)
        losses.append(float(metrics["train/loss"]))
    return state, np.array(losses)


def main(folder: pathlib.Path, shapes: list[Shape], trained: list[Shape]) -> Tally:
  """Saves on the shapes that are trained on, restores each checkpoint on all shapes."""
  tally, apart = Tally(), np.zeros(FOLLOWING)
  trainers = {shape: _Trainer(shape) for shape in shapes}
  for shape in trained:
    saver, position = trainers[shape], {"next_index": SAVED_AT}
    state = init_state(saver.model, saver.optimizer, jax.random.key(0), saver.abstract)
    state, _ = saver.train(state, SAVED_AT)
    keep = CheckpointConfig(every_steps=1, keep=2)
    with Checkpoints(folder / "-".join(map(str, shape)), keep) as checkpoints:
      checkpoints.save(state, position, {})
      checkpoints.wait()
      saved = digest_of(state, position)
      _, uninterrupted = saver.train(state, FOLLOWING)
      for other_shape, other in trainers.items():
        with tally.attempt(f"saved on {shape}, restored on {other_shape}"):
          state, position = checkpoints.restore(other.abstract)
          assert digest_of(state, position) == saved, "the state differs"
          placed = jax.tree.map(lambda leaf: leaf.sharding, state)
          assert placed == shardings(other.abstract), "the state lies elsewhere"
          if other_shape not in trained:
            continue
          _, losses = other.train(state, FOLLOWING)
          difference = np.abs(losses / uninterrupted - 1)
          apart = np.maximum(apart, difference)
          assert difference.max() <= TOLERANCE, f"the losses differ by {difference}"
  tally.measured = (
    f"the next loss within {apart[0]:.1e} relative, the {FOLLOWING} next within"
    f" {apart.max():.1e}"
  )
  return tally


if __name__ == "__main__":
  shapes = [tuple(shape) for shape in json.loads(sys.argv[2])]
  first = shapes[: int(sys.argv[3])]  # the others restore, but do not go on
  print(json.dumps(vars(main(pathlib.Path(sys.argv[1]), shapes, first))))
