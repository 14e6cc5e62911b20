"""Whatever the mesh of eight devices, it computes what one device computes.

Needs eight devices, so `test_sharding.py` runs this in a process of its own.
"""

import functools
import itertools
import json
import pathlib
import re
import tempfile
from typing import Any, NamedTuple

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import toy
from gpt2_flax.datasets.pipeline import train_dataset
from gpt2_flax.layer_stacking import stack_layers
from gpt2_flax.training import loop
from gpt2_flax.training.config import MeshConfig, parse
from gpt2_flax.training.evaluation import Evaluator
from gpt2_flax.training.mesh import (
  batch_sharding,
  make_mesh,
  one_device_mesh,
  spread_over,
)
from gpt2_flax.training.optimizer import learning_rate_schedule, make_optimizer
from gpt2_flax.training.step import (
  abstract_state,
  init_state,
  make_train_step,
  shardings,
  TrainState,
)
from gpt2_flax.training.workdir import load_run
from gpt2_flax.transformer import GPT2

SHAPES = [s for s in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(s) == 8]
ONE = (1, 1, 1)
# No two sizes are alike, so that a size in a compiled program tells its axis. The
# vocabulary of 70 is no multiple of 4.
STEPS, BATCH, LENGTH, HEADS, EMBED, MLP = 20, 24, 10, 8, 32, 56


def make_config(**model):
  config = toy.get_config()
  config.model.update(
    num_layers=1,
    num_heads=HEADS,
    embed_dim=EMBED,
    mlp_dim=MLP,
    context_length=LENGTH,
  )
  config.model.update(model)
  config.optimizer.warmup_steps = 5
  config.train.num_steps = STEPS
  config.train.batch_size = BATCH
  config.train.log_every_steps = 1
  config.eval.num_windows = 30  # not a multiple of the batch
  config.eval.sample_tokens = 14  # more than the context has room for
  return config


class Run(NamedTuple):
  """How training on a mesh went.

  Attributes:
    losses: of each step.
    state: after the last.
    program: a step as it was compiled for one of the devices.
    evaluator, mesh: to go on with.
  """

  losses: np.ndarray
  state: TrainState
  program: str
  evaluator: Evaluator
  mesh: jax.sharding.Mesh


def mesh_of(shape, config) -> jax.sharding.Mesh:
  return one_device_mesh() if shape == ONE else make_mesh(MeshConfig(*shape), config)


@functools.cache
def run(shape, optimizer_name="adamw", **model_changes) -> Run:
  values = make_config(**model_changes)
  values.optimizer.name = optimizer_name
  config, dataset = parse(values)
  mesh = mesh_of(shape, config.train)
  model = GPT2(config.model)
  schedule = learning_rate_schedule(config.optimizer, STEPS)
  optimizer = make_optimizer(config.optimizer, schedule)
  batches = train_dataset(dataset, BATCH, seed=0)
  abstract = abstract_state(model, optimizer, mesh)
  evaluator = Evaluator(model, dataset, config, batch_sharding(mesh))
  params = first_params(GPT2(config.model.plain))
  if config.model.scan_layers:
    params = stack_layers(params)
  state = TrainState(
    step=jnp.int32(0),
    skipped=jnp.int32(0),
    loss_mean=jnp.float32(jnp.inf),
    params=params,
    opt_state=jax.jit(optimizer.init)(params),
    rng=jax.random.key(0),
  )
  state = jax.device_put(state, shardings(abstract))
  with spread_over(mesh):
    train_step = make_train_step(model, optimizer, schedule, abstract)
    on_mesh = jax.device_put(batches[0], batch_sharding(mesh))
    train_step = train_step.lower(state, on_mesh).compile()
    losses = []
    for step in range(STEPS):
      batch = jax.device_put(batches[step], batch_sharding(mesh))
      state, metrics = train_step(state, batch)
      losses.append(float(metrics["train/loss"]))
  return Run(np.array(losses), state, train_step.as_text(), evaluator, mesh)


@functools.cache
def first_params(model: GPT2) -> Any:
  """The same for all meshes: drawn on one device."""
  rule = optax.sgd(1.0)
  abstract = abstract_state(model, rule, one_device_mesh())
  return jax.device_get(init_state(model, rule, 0, abstract).params)


def sizes(program: str) -> set[int]:
  """Of every axis of every array of floats in a compiled program."""
  shapes = re.findall(r"\bf32\[([\d,]+)\]", program)
  return {int(size) for shape in shapes for size in shape.split(",")}


class EveryShapeTest(chex.TestCase):
  def test_there_are_ten(self):
    self.assertLen(SHAPES, 10)
    self.assertEqual(jax.device_count(), 8)

  @parameterized.parameters(*SHAPES)
  def test_trains_as_one_device_does(self, *shape):
    found, expected = run(shape), run(ONE)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)
    self.assertLess(expected.losses[-1], expected.losses[0] - 0.5)

  @parameterized.parameters(*SHAPES)
  def test_each_device_has_its_share_and_no_more(self, data, fsdp, tensor):
    trained = run((data, fsdp, tensor))
    share = (EMBED // fsdp, MLP // tensor)
    for tree in (trained.state.params, trained.state.opt_state[1][0].mu):
      expand = tree["params"]["blocks_0"]["feed_forward"]["expand"]["kernel"]
      self.assertEqual({s.data.shape for s in expand.addressable_shards}, {share})
    found = sizes(trained.program)
    whole_batch = {BATCH, BATCH * LENGTH}
    self.assertEqual(bool(found & whole_batch), data * fsdp == 1)
    self.assertEqual(MLP in found, tensor == 1)


class DeepTest(chex.TestCase):
  def test_scanned_and_computed_twice_under_muon(self):
    changes = dict(scan_layers=True, remat="dots")
    found = run((1, 4, 2), "muon", num_layers=2, **changes)
    expected = run(ONE, "muon", num_layers=2)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)
    self.assertNotIn(BATCH, sizes(found.program))


class EvaluationTest(chex.TestCase):
  @parameterized.parameters((2, 2, 2), (1, 8, 1))
  def test_losses_and_texts_are_those_of_one_device(self, *shape):
    trained = run(shape)
    on_one = jax.device_put(trained.state.params, jax.devices()[0])
    expected = run(ONE).evaluator
    with spread_over(trained.mesh):
      losses = trained.evaluator.losses(trained.state.params)
      samples = trained.evaluator.samples(trained.state.params, 3, seed=5)
    self.assertAlmostEqual(
      losses["val/loss"], expected.losses(on_one)["val/loss"], places=5
    )
    np.testing.assert_array_equal(samples, expected.samples(on_one, 3, seed=5))


class WholeRunTest(chex.TestCase):
  def test_train_on_a_mesh_leaves_what_one_device_would(self):
    values = make_config(scan_layers=True, remat="full")
    values.optimizer.name = "adamw"
    values.mesh = dict(data=-1, fsdp=2, tensor=2)
    config, dataset = parse(values)
    workdir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    loop.train(config, dataset, workdir)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    losses = [r["train/loss"] for r in records if "train/loss" in r]
    expected = run(ONE)
    np.testing.assert_allclose(losses, expected.losses, rtol=1e-5)
    (evaluated,) = [r["val/loss"] for r in records if "val/loss" in r]
    _, params, _ = load_run(workdir)  # on one device, its layers unstacked
    for same in (params, expected.state.params):
      loss = expected.evaluator.losses(same)["val/loss"]
      self.assertAlmostEqual(evaluated, loss, places=5)
