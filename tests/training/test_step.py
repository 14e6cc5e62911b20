"""The training step: its loss, its accumulation, its care for bad batches."""

import functools
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gpt2_flax.model_config import GPT2Config
from gpt2_flax.training import loss as loss_lib
from gpt2_flax.training.config import MeshConfig, OptimizerConfig, TrainConfig
from gpt2_flax.training.mesh import make_mesh, one_device_mesh
from gpt2_flax.training.optimizer import learning_rate_schedule, make_optimizer
from gpt2_flax.training.step import (
  abstract_state,
  init_state,
  make_eval_step,
  make_train_step,
  shardings,
  TrainState,
)
from gpt2_flax.transformer import GPT2
from tests.close import assert_close, ROUNDINGS, sizes
from tests.params import random_params

MODEL = GPT2(
  GPT2Config(vocab_size=11, context_length=6, num_layers=1, num_heads=2, embed_dim=8)
)
DROPOUT = GPT2(
  GPT2Config(
    vocab_size=11,
    context_length=6,
    num_layers=1,
    num_heads=2,
    embed_dim=8,
    dropout_rate=0.5,
  )
)

ADAM = dict(weight_decay=0.0, beta1=0.9, beta2=0.99, max_grad_norm=1.0)


def batch(seed: int, rows: int = 8) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  targets = rng.integers(0, 11, (rows, 6)).astype(np.int32)
  targets[rng.random(targets.shape) < 0.3] = -1  # rows count unequally
  inputs = rng.integers(0, 11, (rows, 6)).astype(np.int32)
  return {"inputs": inputs, "targets": targets}


def setup(
  model: GPT2,
  accumulation_steps: int = 1,
  rate: float = 0.1,
  max_loss_jump: float = 0.0,
  mesh: jax.sharding.Mesh | None = None,
):
  train = TrainConfig(
    num_steps=10,
    batch_size=8,
    accumulation_steps=accumulation_steps,
    seed=0,
    log_every_steps=1,
    max_skipped_steps=0,
    max_loss_jump=max_loss_jump,
  )
  mesh = mesh or make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1), train)
  optimizer = optax.sgd(rate)
  abstract = abstract_state(model, optimizer, mesh)
  # to draw them on the device would be compiled for each model and mesh
  placed = jax.device_put(random_params(model, scale=0.3), shardings(abstract).params)
  state = init_state(model, optimizer, jax.random.key(0), abstract, params=placed)
  step = make_train_step(
    model, optimizer, lambda _: rate, abstract, accumulation_steps, max_loss_jump
  )
  return state, step, abstract


_compiled_once = functools.cache(setup)


def begin(*args, **named):
  """As `setup`; the same arguments share a compiled step."""
  state, step, abstract = _compiled_once(*args, **named)
  return jax.tree.map(jnp.copy, state), step, abstract


def loss_and_norm(metrics) -> list[float]:
  return [float(metrics[f"train/{name}"]) for name in ("loss", "grad_norm")]


def kept(state: TrainState):
  """What a bad batch must not change."""
  return state.params, state.opt_state, state.loss_mean


class StepTest(chex.TestCase):
  def test_the_state_is_as_abstract_says(self):
    optimizer = optax.adam(0.1)
    abstract = abstract_state(MODEL, optimizer, one_device_mesh())
    state = init_state(MODEL, optimizer, jax.random.key(0), abstract)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, abstract)

  def test_accumulation_equals_the_big_batch(self):
    self.accumulate(4)

  @parameterized.parameters(2, 8)
  @pytest.mark.slow
  def test_so_it_does_in_other_pieces(self, pieces):
    self.accumulate(pieces)

  def accumulate(self, pieces):
    whole, whole_step, _ = begin(MODEL)
    pieced, pieced_step, _ = begin(MODEL, pieces)
    for seed in range(3):
      whole, expected = whole_step(whole, batch(seed))
      pieced, found = pieced_step(pieced, batch(seed))
      assert_close(found, expected, 2 * ROUNDINGS)
    scale = sizes(whole.params)
    assert_close(pieced.params, whole.params, 2 * ROUNDINGS, scale=scale)

  @pytest.mark.slow  # eight_devices.py has both at once
  def test_accumulation_goes_with_a_loss_in_chunks(self):
    whole, whole_step, _ = begin(MODEL)
    whole, expected = whole_step(whole, batch(0))
    with mock.patch.object(loss_lib, "LOGITS_AT_ONCE", 2 * 2 * 11):  # 2 positions
      pieced, pieced_step, _ = setup(MODEL, 4)
      pieced, found = pieced_step(pieced, batch(0))
    assert_close(found, expected, 2 * ROUNDINGS)
    scale = sizes(whole.params)
    assert_close(pieced.params, whole.params, 2 * ROUNDINGS, scale=scale)

  def test_dropout_differs_from_step_to_step_and_is_repeatable(self):
    def losses(rate: float):
      state, step, _ = begin(DROPOUT, rate=rate)
      found = []
      for _ in range(3):
        state, metrics = step(state, batch(0))
        found.append(float(metrics["train/loss"]))
      return found

    still = losses(rate=0.0)  # the parameters stay, only dropout differs
    self.assertLen(set(still), 3)
    self.assertEqual(losses(rate=0.0), still)

  def test_each_piece_of_a_batch_draws_its_own_dropout(self):
    state, step, _ = setup(DROPOUT, 8, rate=0.0)
    losses = []
    for piece in range(8):  # all rows alike, one of which counts
      targets = np.full((8, 6), -1, np.int32)
      targets[piece] = np.arange(6)
      examples = {"inputs": np.tile(np.arange(6, dtype=np.int32), (8, 1))}
      same_draws = jax.tree.map(jnp.copy, state)
      _, metrics = step(same_draws, examples | {"targets": targets})
      losses.append(float(metrics["train/loss"]))
    self.assertLen(set(losses), 8)

  def test_the_old_states_memory_is_reused(self):
    state, step, _ = begin(MODEL)
    addresses = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state.params)}
    after, _ = step(state, batch(0))
    for path, leaf in jax.tree.leaves_with_path(state):
      self.assertTrue(leaf.is_deleted(), path)
    reused = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(after.params)}
    self.assertEqual(reused, addresses)

  @parameterized.parameters("all masked", "nan")
  def test_a_bad_batch_leaves_the_state_as_it_was(self, kind):
    state, step, _ = begin(MODEL)
    bad = batch(0)
    if kind == "all masked":
      bad["targets"][:] = -1
    else:
      params = jax.tree.map(jnp.array, state.params)
      norm = params["params"]["final_norm"]
      norm["scale"] = norm["scale"].at[0].set(jnp.nan)
      state = state.replace(params=params)
    before = jax.device_get(kept(state))
    state, metrics = step(state, bad)
    self.assertFalse(np.isfinite(metrics["train/loss"]))
    np.testing.assert_equal(jax.device_get(kept(state)), before)
    self.assertEqual((int(state.step), int(state.skipped)), (1, 1))
    self.assertEqual(metrics["train/targets"], np.sum(bad["targets"] >= 0))

  @parameterized.parameters((0.5, True), (1.5, False), (0.0, False))
  def test_a_loss_that_jumps_is_bad_if_it_is_said_how_far_it_may(self, limit, skips):
    changed = {"max_loss_jump": limit} if limit else {}
    state, step, _ = begin(MODEL, **changed)
    losses = []
    for seed in range(3):
      state, metrics = step(state, batch(seed))
      losses.append(float(metrics["train/loss"]))
    mean = losses[0]
    for loss in losses[1:]:
      mean += (loss - mean) / 50
    # a difference, a quotient and a sum, twice
    assert_close(metrics["train/loss_mean"], mean, 2 * 3)
    # as if all until now had been a nat lower
    state, _, _ = begin(MODEL, **changed)
    low = float(step(state, batch(3))[1]["train/loss"]) - 1
    state, _, _ = begin(MODEL, **changed)
    state = state.replace(loss_mean=jnp.float32(low))
    before = jax.device_get(kept(state))
    state, metrics = step(state, batch(3))
    self.assertEqual(int(state.skipped), skips)
    if skips:
      np.testing.assert_equal(jax.device_get(kept(state)), before)
      assert_close(metrics["train/loss_mean"], low, 1)
    else:
      assert_close(metrics["train/loss_mean"], low + 1 / 50)

  def test_the_learning_rate_is_that_of_the_steps_taken(self):
    train = dict(learning_rate=0.5, warmup_steps=4)
    config = OptimizerConfig("adamw", **train, **ADAM)
    schedule = learning_rate_schedule(config, num_steps=10)
    optimizer = make_optimizer(config, schedule)
    abstract = abstract_state(MODEL, optimizer, one_device_mesh())
    state = init_state(MODEL, optimizer, jax.random.key(0), abstract)
    step = make_train_step(MODEL, optimizer, schedule, abstract)
    masked = batch(0)
    masked["targets"][:] = -1
    rates = []
    for examples in (batch(1), masked, batch(2), batch(3)):
      state, metrics = step(state, examples)
      rates.append(float(metrics["train/learning_rate"]))
    self.assertEqual(rates, [0, 0.125, 0.125, 0.25])
    counts = [
      leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == "int32"
    ]
    self.assertEqual({int(count) for count in counts}, {3})

  def test_moves_nothing_between_host_and_device_by_itself(self):
    state, step, _ = begin(MODEL)
    on_device = jax.device_put(batch(0))
    with jax.transfer_guard("disallow"):
      state, _ = step(state, on_device)
      with self.assertRaisesRegex(Exception, "Disallowed host-to-device"):
        step(state, batch(0))  # so the guard does see what is not moved by name

  def test_evaluation_has_no_dropout(self):
    state, _, _ = begin(DROPOUT, rate=0.0)
    found, expected = (
      make_eval_step(model)(state.params, batch(0)) for model in (DROPOUT, MODEL)
    )
    assert_close(found, expected)

  def test_one_batch_can_be_learned_by_heart(self):
    state, step, _ = setup(MODEL, rate=1.0)
    inputs = np.tile(np.arange(6, dtype=np.int32), (8, 1))
    examples = {"inputs": inputs, "targets": (inputs * 3 + 1) % 11}
    for _ in range(300):
      state, metrics = step(state, examples)
    self.assertLess(metrics["train/loss"], 0.02)
