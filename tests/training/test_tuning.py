"""What learns, what is frozen, and how fast each layer learns."""

import dataclasses
import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gpt2_flax import GPT2, GPT2Config
from gpt2_flax.errors import InputError
from gpt2_flax.layers.layer_stacking import stack_layers, unstack_layers
from gpt2_flax.training import tuning as tuning_lib
from gpt2_flax.training.config import FinetuneConfig, OptimizerConfig, OPTIMIZERS
from gpt2_flax.training.lora import by_name, pairs
from gpt2_flax.training.loss import summed_loss
from gpt2_flax.training.mesh import one_device_mesh
from gpt2_flax.training.optimizer import make_optimizer
from gpt2_flax.training.step import abstract_state, init_state, make_train_step
from tests.close import assert_close, ROUNDINGS, sizes
from tests.params import random_params
from tests.training.test_step import batch

CONFIG = GPT2Config(
  vocab_size=11,
  context_length=6,
  num_layers=2,
  num_heads=2,
  embed_dim=8,
  positional_encoding="learned",
)
PLAIN = GPT2(CONFIG)
SCANNED = GPT2(dataclasses.replace(CONFIG, scan_layers=True, remat="dots"))
TOP = "blocks_1/*,final_norm/*"
SOME = "*/query/kernel,blocks_0/*/expand/kernel"  # of all layers, and of one


def make(scanned=False, **values):
  return tuning_lib.make_tuning(FinetuneConfig(**values), PLAIN, scanned)


@functools.cache
def params():
  return random_params(PLAIN, scale=0.3)


def moved(leaf):
  """An adapter as if it had learned."""
  return leaf + 0.1 * jnp.cos(jnp.arange(leaf.size, dtype="f4")).reshape(leaf.shape)


@functools.cache
def stepped(tuning, optimizer, scanned=False):
  """What learned and what is frozen before a step, the state after it, its metrics."""
  mesh = one_device_mesh()
  abstract = abstract_state(PLAIN, optimizer, mesh, tuning)
  whole = jax.tree.map(jnp.copy, params())
  state = init_state(PLAIN, optimizer, jax.random.key(0), abstract, tuning, whole)
  if isinstance(tuning, tuning_lib.Lora):
    state = state.replace(params=jax.tree.map(moved, state.params))
  before = jax.device_get((state.params, state.frozen))
  if scanned:
    state = tuning.stacked(state)
    if not tuning.held_apart:
      abstract = abstract_state(SCANNED, optimizer, mesh, tuning)
  model = SCANNED if scanned else PLAIN
  step = make_train_step(model, optimizer, None, abstract, tuning=tuning)
  return before, *step(state, batch(0))


class MakeTest(chex.TestCase):
  def test_everything_by_default(self):
    self.assertIs(make(), tuning_lib.EVERYTHING)
    self.assertIs(make(train="*"), tuning_lib.EVERYTHING)

  @parameterized.parameters(
    ("blocks_[01]/attention/output/*", "output", 4),
    ("*/bias", "bias", 2 * (3 + 1 + 1 + 2 + 1) + 1),
    ("final_norm/scale , token_embedding/*", "", 2),
  )
  def test_patterns_match_whole_names(self, patterns, part, count):
    names = make(train=patterns).names
    self.assertLen(names, count)
    for name in names:
      self.assertIn(part, name)

  @parameterized.parameters(
    (
      dict(train="blocks_1"),
      "'blocks_1': did you mean 'blocks_1/*'? allowed: blocks_*",
    ),
    (dict(train="*/bias,blocks_0/.*"), "'blocks_0/.*': did you mean 'blocks_0/*'?"),
    (dict(train="query/kernel"), "did you mean '*/query/kernel'?"),
    (dict(train="final_norm/scales"), "did you mean 'final_norm/scale'?"),
    (dict(train="xyz"), "pattern in finetune.train 'xyz': allowed: blocks_*/attention"),
    (dict(lora="*/bias"), "pattern in finetune.lora '*/bias': "),
    (dict(lora="*/embedding"), "pattern in finetune.lora '*/embedding': "),
    (
      dict(lora="*/contract/kernel", lora_rank=9),
      "lora_rank is 9: must be at most 8, the rank of blocks_0/feed_forward/contract/k",
    ),
  )
  def test_what_fits_nothing_is_refused(self, values, message):
    with self.assertRaises(InputError) as raised:
      make(**values)
    self.assertIn(message, str(raised.exception))

  def test_adapters_are_of_kernels_alone(self):
    kernels = dict(make(lora="blocks_1/*").kernels)
    self.assertLen(kernels, 6)
    self.assertEqual(kernels["blocks_1/attention/heads/value/kernel"], (2, 8, 4))


class SplitTest(chex.TestCase):
  @parameterized.product(
    values=(dict(train=TOP), dict(train=SOME), dict(lora=SOME)), scanned=(False, True)
  )
  def test_parts_join_to_what_was_split(self, values, scanned):
    tuning = make(scanned, **values)
    learns, frozen = tuning.split(params(), jax.random.key(0))
    if scanned and not tuning.held_apart:
      frozen = stack_layers(frozen)
    expected = stack_layers(params()) if scanned else params()
    chex.assert_trees_all_equal(tuning.join(learns, frozen), expected)

  def test_what_is_not_chosen_is_frozen(self):
    learns, frozen = make(train=TOP).split(params(), jax.random.key(0))
    self.assertEqual(learns["params"].keys(), {"blocks_1", "final_norm"})
    names = {"token_embedding", "positional_encoding", "blocks_0"}
    self.assertEqual(frozen["params"].keys(), names)


SGD = optax.sgd(0.5)


def optimizer(name):
  config = OptimizerConfig(name, 0.1, 0, 0.1, 0.9, 0.99, 1.0)
  return make_optimizer(config, lambda step: 0.1)


class StepTest(chex.TestCase):
  @parameterized.parameters(("adamw", dict(train=TOP)), ("muon", dict(lora=SOME)))
  def test_what_is_frozen_keeps_its_bits_and_the_rest_learns(self, name, values):
    self.assert_keeps_its_bits(name, values)

  @pytest.mark.slow
  def test_so_it_does_under_another_optimizer(self):
    self.assert_keeps_its_bits("lion", dict(lora=SOME))

  def assert_keeps_its_bits(self, name, values):
    tuning = make(**values)
    (learns, frozen), state, _ = stepped(tuning, optimizer(name))
    chex.assert_trees_all_equal(state.frozen, frozen)
    after = by_name(state.params)
    for name, leaf in by_name(learns).items():
      self.assertTrue(np.all(np.isfinite(after[name])), name)
      self.assertFalse(np.array_equal(leaf, after[name]), name)
    if isinstance(tuning, tuning_lib.Chosen):
      self.assertEqual(after.keys(), tuning.names)

  def test_what_learns_does_so_as_if_nothing_were_frozen(self):
    self.assert_learns_as_if_nothing_were_frozen(SOME, True)

  @pytest.mark.slow
  def test_so_it_does_where_layers_are_apart(self):
    self.assert_learns_as_if_nothing_were_frozen(TOP, False)

  def assert_learns_as_if_nothing_were_frozen(self, train, scanned):
    tuning = make(scanned, train=train)
    _, found, _ = stepped(tuning, SGD, scanned)
    _, expected, _ = stepped(tuning_lib.EVERYTHING, SGD)
    whole = by_name(expected.params), by_name(sizes(expected.params))
    learned, scale = ({name: flat[name] for name in tuning.names} for flat in whole)
    assert_close(by_name(found.params), learned, 2 * ROUNDINGS, scale=scale)

  def test_adapters_take_their_share_of_the_kernels_gradient(self):
    self.assert_share_of_the_gradient(True)

  @pytest.mark.slow
  def test_so_they_do_where_layers_are_apart(self):
    self.assert_share_of_the_gradient(False)

  def assert_share_of_the_gradient(self, scanned):
    values = dict(lora=SOME, lora_rank=3, lora_alpha=6.0)
    (adapters, frozen), after, metrics = stepped(make(scanned, **values), SGD, scanned)

    def mean_loss(params):
      total, count = summed_loss(PLAIN, params, batch(0))
      return total / count

    whole = make(**values).join(adapters, frozen)
    loss, slopes = jax.jit(jax.value_and_grad(mean_loss))(whole)
    assert_close(metrics["train/loss"], loss)
    for name, (a_IR, b_RO) in pairs(adapters).items():
      slope = np.asarray(by_name(slopes)[name], np.float64)
      if slope.ndim == 3:  # of heads: one matrix
        slope = np.concatenate(list(slope), axis=1)
      rate = 0.5 * 6 / 3
      expected = a_IR - rate * slope @ b_RO.T, b_RO - rate * a_IR.T @ slope
      assert_close(pairs(after.params)[name], expected, 2 * ROUNDINGS, dtype=np.float32)

  @parameterized.product(
    name=OPTIMIZERS, values=(dict(train=TOP), dict(train="*/bias"), dict(lora=SOME))
  )
  def test_no_optimizer_has_a_state_for_what_is_frozen(self, name, values):
    mesh = one_device_mesh()
    state = abstract_state(PLAIN, optimizer(name), mesh, make(**values))
    num_learn = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    held = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
    self.assertBetween(held, num_learn, 2 * num_learn + 8)  # counts and constants

  def test_no_gradient_is_computed_for_what_is_frozen(self):
    """Of the products of a full step a third are the forward's, a third weights'."""

    def num_products(**values):
      tuning = make(**values)
      abstract = abstract_state(PLAIN, SGD, one_device_mesh(), tuning)
      step = make_train_step(PLAIN, SGD, None, abstract, tuning=tuning)
      return str(step.trace(abstract, batch(0)).jaxpr).count("dot_general[")

    full, of_norm = num_products(), num_products(train="final_norm/*")
    # what is left: the forward's, and three of the logits and their two gradients
    self.assertLess(of_norm, full / 3 + 3)


class LayerDecayTest(chex.TestCase):
  def updates(self, tree):
    rule = tuning_lib.scale_by_layer(0.5, num_layers=2)
    ones = jax.tree.map(np.ones_like, tree)
    return rule.update(ones, rule.init(tree), tree)[0]

  def assert_scaled(self, found):
    by_part = {
      **{"token_embedding": 0.25, "positional_encoding": 0.25},
      **{"blocks_0": 0.5, "blocks_1": 1.0, "final_norm": 1.0},
    }
    for name, leaf in by_name(found).items():
      np.testing.assert_array_equal(leaf, by_part[name.partition("/")[0]], name)

  def test_each_layer_has_a_share_of_the_rate_of_the_one_above(self):
    self.assert_scaled(self.updates(params()))

  def test_so_it_has_where_layers_are_stacked(self):
    stacked = stack_layers(params())
    self.assert_scaled(unstack_layers(self.updates(stacked)))

  def test_the_top_is_that_of_the_whole_model(self):
    adapters, _ = make(lora="blocks_0/*").split(params(), jax.random.key(0))
    self.assert_scaled(self.updates(adapters))
