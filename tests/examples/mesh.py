"""Heads of one's own on four devices; `training/test_sharding.py` runs this."""

import dataclasses

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from examples import heads  # noqa: F401 (adds them by name)
from gpt2_flax import GPT2, GPT2Config
from gpt2_flax.training.mesh import batch_sharding, one_device_mesh, spread_over
from gpt2_flax.training.step import abstract_state, init_state, make_train_step
from tests.close import assert_close, ROUNDINGS

CONFIG = GPT2Config(
  vocab_size=13, context_length=24, num_layers=1, num_heads=2, embed_dim=8
)
STEPS = 3
TOKENS = np.random.default_rng(0).integers(0, 13, (4, 12)).astype("i4")


def losses(name: str, mesh: jax.sharding.Mesh) -> list[float]:
  model = GPT2(dataclasses.replace(CONFIG, attention=name))
  optimizer = optax.sgd(1.0)
  abstract = abstract_state(model, optimizer, mesh)
  state = init_state(model, optimizer, jax.random.key(0), abstract)
  found = []
  with spread_over(mesh):
    step = make_train_step(model, optimizer, None, abstract)
    batch = {"inputs": TOKENS[:, :-1], "targets": TOKENS[:, 1:]}
    batch = jax.device_put(batch, batch_sharding(mesh))
    for _ in range(STEPS):
      state, metrics = step(state, batch)
      found.append(float(metrics["train/loss"]))
  return found


@pytest.mark.slow
class MeshTest(chex.TestCase):
  @parameterized.parameters("normed", "sink", "sliding", "linear")
  def test_takes_the_steps_of_one_device(self, name):
    mesh = jax.make_mesh(
      (2, 1, 2),
      ("data", "fsdp", "tensor"),
      axis_types=(jax.sharding.AxisType.Auto,) * 3,
    )
    found, expected = losses(name, mesh), losses(name, one_device_mesh())
    assert_close(jnp.array(found), jnp.array(expected), STEPS * ROUNDINGS)
    self.assertGreater(expected[0] - expected[-1], 0.01)
