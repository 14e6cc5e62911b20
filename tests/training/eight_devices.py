"""Whatever the mesh of eight devices, it computes what one device computes.

Needs eight devices, so `test_sharding.py` runs this in a process of its own; all meshes
there are, if slow tests are asked for.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import re
import tempfile
from typing import Any, NamedTuple
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from configs import toy
from gpt2_flax.datasets.pipeline import train_dataset
from gpt2_flax.layers.layer_stacking import stack_layers
from gpt2_flax.training import loop, loss, muon, progress, together
from gpt2_flax.training.checkpoints import Checkpoints
from gpt2_flax.training.config import CheckpointConfig, FinetuneConfig, MeshConfig
from gpt2_flax.training.evaluation import Evaluator
from gpt2_flax.training.experiment import parse
from gpt2_flax.training.mesh import (
  batch_sharding,
  make_mesh,
  one_device_mesh,
  spread_over,
)
from gpt2_flax.training.optimizer import learning_rate_schedule, make_optimizer
from gpt2_flax.training.source import load_run
from gpt2_flax.training.step import (
  abstract_state,
  init_state,
  make_train_step,
  shardings,
  TrainState,
)
from gpt2_flax.training.tuning import make_tuning
from gpt2_flax.transformer import GPT2
from tests.close import assert_close, ROUNDINGS
from tests.reliability.runs import digest_of
from tests.training import test_step

SHAPES = [s for s in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(s) == 8]
ONE, EVERY_AXIS, TENSOR_ONLY = (1, 1, 1), (2, 2, 2), (1, 1, 8)
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
  return jax.device_get(init_state(model, rule, jax.random.key(0), abstract).params)


def sizes(program: str) -> set[int]:
  """Of every axis of every array of floats in a compiled program."""
  shapes = re.findall(r"\bf32\[([\d,]+)\]", program)
  return {int(size) for shape in shapes for size in shape.split(",")}


class ShapeTest(chex.TestCase):
  def test_trains_as_one_device_does(self):
    assert_trains_as_one_device_does(EVERY_AXIS)

  def test_each_device_has_its_share_and_no_more(self):
    assert_each_device_has_its_share_and_no_more(*EVERY_AXIS)


@pytest.mark.slow
class EveryShapeTest(chex.TestCase):
  def test_there_are_ten(self):
    self.assertLen(SHAPES, 10)

  @parameterized.parameters(*SHAPES)
  def test_trains_as_one_device_does(self, *shape):
    assert_trains_as_one_device_does(shape)

  @parameterized.parameters(*SHAPES)
  def test_trains_as_one_device_does_under_muon(self, *shape):
    found, expected = run(shape, "muon"), run(ONE, "muon")
    assert_close(found.losses, expected.losses, 3 * ROUNDINGS, dtype=np.float32)

  @parameterized.parameters(*SHAPES)
  def test_each_device_has_its_share_and_no_more(self, *shape):
    assert_each_device_has_its_share_and_no_more(*shape)


def assert_trains_as_one_device_does(shape):
  found, expected = run(shape), run(ONE)
  assert_close(found.losses, expected.losses, 3 * ROUNDINGS, dtype=np.float32)
  assert expected.losses[-1] < expected.losses[0] - 0.5


def assert_each_device_has_its_share_and_no_more(data, fsdp, tensor):
  trained = run((data, fsdp, tensor))
  share = (EMBED // fsdp, MLP // tensor)
  for tree in (trained.state.params, trained.state.opt_state[1][0].mu):
    expand = tree["params"]["blocks_0"]["feed_forward"]["expand"]["kernel"]
    assert {shard.data.shape for shard in expand.addressable_shards} == {share}
  found = sizes(trained.program)
  own = BATCH // (data * fsdp)
  more = {BATCH, BATCH // data, BATCH // fsdp} - {own}  # rows that it does not need
  assert not found & {rows * n for rows in more for n in (1, LENGTH)}
  assert found & {own, own * LENGTH}
  assert (MLP in found) == (tensor == 1)


class CheckpointTest(chex.TestCase):
  """What one mesh has saved; docs/reliability.md tries each pair of meshes."""

  def test_comes_back_on_another(self):
    self.come_back_on(TENSOR_ONLY)

  def test_comes_back_on_one_device(self):
    self.come_back_on(ONE)

  def come_back_on(self, shape):
    trained = run(EVERY_AXIS)
    values = make_config()
    values.optimizer.name = "adamw"
    config, _ = parse(values)
    optimizer = make_optimizer(config.optimizer, lambda step: 0.0)
    mesh = mesh_of(shape, config.train)
    abstract = abstract_state(GPT2(config.model), optimizer, mesh)
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    keep = CheckpointConfig(every_steps=1, keep=2)
    with Checkpoints(folder / "checkpoints", keep) as checkpoints:
      checkpoints.save(trained.state, {"next_index": STEPS}, {})
      checkpoints.wait()
      state, position = checkpoints.restore(abstract)
    self.assertEqual(position, {"next_index": STEPS})
    self.assertEqual(digest_of(state, {}), digest_of(trained.state, {}))
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    self.assertEqual(placed, shardings(abstract))


class StepTest(chex.TestCase):
  def test_several_take_the_step_of_one_in_pieces_and_chunks_too(self):
    self.compare_steps(pieces=2, logits_at_once=2 * 11)

  @parameterized.parameters((1, 2**28), (2, 2**28), (1, 2 * 11))
  @pytest.mark.slow
  def test_so_they_do_in_one_of_them(self, pieces, logits_at_once):
    self.compare_steps(pieces, logits_at_once)

  def test_documents_apart_on_a_mesh_of_every_axis(self):
    """That no row leaves its device for its positions, `test_sharding.py` looks."""
    config = dataclasses.replace(test_step.MODEL.config, positional_encoding="learned")
    self.compare_steps(1, 2**28, EVERY_AXIS, GPT2(config))

  def compare_steps(
    self, pieces, logits_at_once, shape=(4, 1, 1), model=test_step.MODEL
  ):
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    several = jax.sharding.Mesh(devices, ("data", "fsdp", "tensor"))
    found = []
    for mesh, chunk in ((several, logits_at_once), (one_device_mesh(), 2**28)):
      state, step, _ = test_step.setup(model, pieces, mesh=mesh)
      with mock.patch.object(loss, "LOGITS_AT_ONCE", chunk), spread_over(mesh):
        for seed in range(3):
          batch = test_step.batch(seed)
          begins = np.random.default_rng(seed).random(batch["inputs"].shape) < 0.3
          batch["documents"] = np.cumsum(begins, axis=1, dtype=np.int32)
          batch = jax.device_put(batch, batch_sharding(mesh))
          state, metrics = step(state, batch)
      found.append(test_step.loss_and_norm(metrics))
    assert_close(*found, 2 * ROUNDINGS, dtype=np.float32)


class LossTest(chex.TestCase):
  def test_each_device_works_on_its_own_rows(self):
    self.assert_rows_stay((2, 2, 2))

  @pytest.mark.slow
  def test_so_it_does_where_no_tensor_is_shared(self):
    self.assert_rows_stay((4, 2, 1))

  def assert_rows_stay(self, shape):
    rows, length, dim, vocab_size = 8, 12, 16, 32
    rng = np.random.default_rng(0)
    hidden = jnp.array(rng.normal(size=(rows, length, dim)), jnp.float32)
    embedding = jnp.array(rng.normal(size=(vocab_size, dim)), jnp.float32)
    targets = jnp.array(rng.integers(-1, vocab_size, (rows, length)), jnp.int32)
    grad = jax.value_and_grad(loss.summed_cross_entropy, argnums=(0, 1))
    expected = jax.jit(grad)(hidden, embedding, targets)

    mesh = jax.make_mesh(
      shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3
    )
    by_row = NamedSharding(mesh, P(("data", "fsdp")))
    table = NamedSharding(mesh, P("tensor", "fsdp"))
    with mock.patch.object(loss, "LOGITS_AT_ONCE", rows * 4 * vocab_size // 8):
      compiled = (
        jax.jit(
          lambda *args: grad(*args, 8),
          in_shardings=(by_row, table, by_row),
          out_shardings=(None, (by_row, table)),
        )
        .lower(hidden, embedding, targets)
        .compile()
      )
    program = compiled.as_text()
    self.assertIn("while(", program)  # in chunks
    gathered = re.findall(r"= (\w+\[[\d,]*\])\S* all-gather\(", program)
    # The table's features and nothing else: no row of the batch leaves its device.
    self.assertEqual(set(gathered), {f"f32[{vocab_size // shape[2]},{dim}]"})
    self.assertNotRegex(program, r"(all-to-all|collective-permute)\(")
    arguments = jax.device_put((hidden, embedding, targets), (by_row, table, by_row))
    # a logit, its softmax and logarithm, and the sum; on both ways
    roundings = 2 * (dim + (vocab_size + 5) + 2 + rows * length)
    assert_close(compiled(*arguments), expected, roundings)


class DeepTest(chex.TestCase):
  @pytest.mark.slow
  def test_scanned_and_computed_twice_under_muon(self):
    changes = dict(scan_layers=True, remat="dots")
    found = run((1, 4, 2), "muon", num_layers=2, **changes)
    expected = run(ONE, "muon", num_layers=2)
    assert_close(found.losses, expected.losses, 3 * ROUNDINGS, dtype=np.float32)
    self.assertNotIn(BATCH, sizes(found.program))


class MuonTest(chex.TestCase):
  @parameterized.parameters(P(), P(None, "fsdp", "tensor"))
  def test_each_device_works_on_its_share_of_the_matrices(self, *laid_out):
    shape = (13, 6, 10)  # two matrices for each device, at most
    kernels = jax.random.normal(jax.random.key(0), shape)
    expected = muon.orthogonalised(kernels)
    mesh = make_mesh(MeshConfig(*EVERY_AXIS), parse(make_config())[0].train)
    kernels = jax.device_put(kernels, NamedSharding(mesh, P(*laid_out)))
    with spread_over(mesh):
      compiled = jax.jit(muon.orthogonalised).lower(kernels).compile()
    self.assertIn("f32[2,6,10]", compiled.as_text())
    # three products of up to 10 terms, five times, each of which may treble an error
    assert_close(compiled(kernels), expected, 5 * 3 * 10 * 8)


@pytest.mark.slow
class TuningTest(chex.TestCase):
  """What learns is on every device, what is frozen is shared out."""

  def test_adapters_learn_as_on_one_device(self):
    values = dict(lora="*/query/kernel,*/contract/kernel", lora_rank=4)
    self.compare((2, 2, 2), values, scan_layers=True)

  def test_so_they_do_if_each_device_has_all(self):
    self.compare((8, 1, 1), dict(lora="*", lora_rank=4))

  def test_a_part_learns_as_on_one_device(self):
    self.compare((8, 1, 1), dict(train="blocks_1/*"))

  def test_so_it_does_if_all_is_shared(self):
    self.compare((2, 2, 2), dict(train="blocks_1/*,final_norm/*"))

  def compare(self, shape, values, **changes):
    found, state = self.train(shape, values, **changes)
    expected, _ = self.train(ONE, values)
    assert_close(found, expected, 3 * ROUNDINGS, dtype=np.float32)
    self.assertLess(expected[-1], expected[0] - 0.05)
    contract = state.frozen["params"].get("blocks", state.frozen["params"])
    contract = contract.get("blocks_0", contract)["feed_forward"]["contract"]["kernel"]
    (share,) = {shard.data.shape for shard in contract.addressable_shards}
    self.assertEqual(share[-2:], (MLP // shape[2], EMBED // shape[1]))

  def train(self, shape, values, **changes):
    config = parse(make_config(num_layers=2, **changes))[0]
    dataset = parse(make_config())[1]
    mesh = mesh_of(shape, config.train)
    model, plain = GPT2(config.model), GPT2(config.model.plain)
    tuning = make_tuning(FinetuneConfig(**values), plain, config.model.scan_layers)
    rule = optax.adam(0.05)
    start = abstract_state(plain, rule, mesh, tuning)
    placed = abstract_state(plain, rule, mesh).params
    whole = jax.device_put(
      first_params(plain), jax.tree.map(lambda leaf: leaf.sharding, placed)
    )
    state = init_state(plain, rule, jax.random.key(0), start, tuning, whole)
    abstract = start if tuning.held_apart else abstract_state(model, rule, mesh, tuning)
    if config.model.scan_layers:
      state = jax.jit(tuning.stacked, out_shardings=shardings(abstract))(state)
    batches, losses = train_dataset(dataset, BATCH, seed=0), []
    with spread_over(mesh):
      step = make_train_step(model, rule, None, abstract, tuning=tuning)
      for number in range(6):
        batch = jax.device_put(batches[number], batch_sharding(mesh))
        state, metrics = step(state, batch)
        losses.append(float(metrics["train/loss"]))
    return np.array(losses), state


class EvaluationTest(chex.TestCase):
  @pytest.mark.slow  # test_processes.py evaluates on two
  def test_losses_and_texts_are_those_of_one_device(self):
    self.evaluate_on(EVERY_AXIS)

  @pytest.mark.slow
  def test_so_they_are_if_only_tensors_are_shared(self):
    self.evaluate_on(TENSOR_ONLY)

  def evaluate_on(self, shape):
    trained = run(shape)
    on_one = jax.device_put(trained.state.params, jax.devices()[0])
    expected = run(ONE).evaluator
    with spread_over(trained.mesh):
      losses = trained.evaluator.losses(trained.state.params)
      samples = trained.evaluator.samples(trained.state.params, 3, seed=5)
    loss = expected.losses(on_one)["val/loss"]
    assert_close(losses["val/loss"], loss, dtype=np.float32)
    np.testing.assert_array_equal(samples, expected.samples(on_one, 3, seed=5))


class TogetherTest(chex.TestCase):
  def test_members_are_shared_out_and_each_is_as_on_one_device(self):
    values, members = make_config(), []
    values.optimizer.name = "adamw"
    values.eval.sample_tokens = 0
    for values.train.seed in (1, 0):
      members.append(parse(values))
    configs, datasets = zip(*members, strict=True)
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    folders, said = [folder / "1", folder / "0"], []

    class Said(progress.Progress):
      def line(self, text):
        said.append(text)

    together.train_together(configs, datasets, folders, lambda *_: None, [Said, Said])
    self.assertIn(", one of 2 in a program on 2 device(s); starts at step 0", said[0])
    lines = (folder / "0" / "metrics.jsonl").read_text().splitlines()
    losses = [loss for r in map(json.loads, lines) if (loss := r.get("train/loss"))]
    assert_close(np.array(losses), run(ONE).losses, 3 * ROUNDINGS, dtype=np.float32)


class WholeRunTest(chex.TestCase):
  @pytest.mark.slow  # test_loop.py trains with scanned layers, test_processes.py on two
  def test_train_on_a_mesh_leaves_what_one_device_would(self):
    values = make_config(num_layers=2, scan_layers=True, remat="full")
    values.optimizer.name = "muon"
    values.mesh = dict(data=-1, fsdp=2, tensor=2)
    config, dataset = parse(values)
    workdir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    loop.train(config, dataset, workdir)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    losses = [r["train/loss"] for r in records if "train/loss" in r]
    expected = run(ONE, "muon", num_layers=2)
    losses = np.array(losses)
    assert_close(losses, expected.losses, 3 * ROUNDINGS, dtype=np.float32)
    (evaluated,) = [r["val/loss"] for r in records if "val/loss" in r]
    _, params, _ = load_run(workdir)  # on one device, its layers unstacked
    for same in (params, expected.state.params):
      loss = expected.evaluator.losses(same)["val/loss"]
      assert_close(evaluated, loss, 3 * ROUNDINGS, dtype=np.float32)
