"""Stacked layers and recomputed ones are the plain loop's, value for value."""

import dataclasses
import functools

from absl.testing import parameterized
import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_flax.errors import InputError
from gpt2_flax.generation import empty_cache
from gpt2_flax.layers.dropout import Dropout
from gpt2_flax.layers.layer_stacking import scan_blocks, stack_layers, unstack_layers
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.training.config import OptimizerConfig
from gpt2_flax.training.mesh import one_device_mesh
from gpt2_flax.training.optimizer import make_optimizer
from gpt2_flax.training.step import abstract_state, TrainState
from gpt2_flax.transformer import GPT2
from tests.close import assert_close, ROUNDINGS, sizes
from tests.params import random_params

B, T, L = 3, 6, 2
CONFIG = GPT2Config(
  vocab_size=11, context_length=T, num_layers=L, num_heads=2, embed_dim=8
)
REMAT = ("none", "scores", "dots", "full")
TOKENS = np.random.default_rng(0).integers(0, 11, (B, T))
MASK = np.random.default_rng(1).random((B, T, T)) < 0.7


def model(**changes) -> GPT2:
  return GPT2(dataclasses.replace(CONFIG, **changes))


@functools.cache
def plain_params():
  return random_params(model(), scale=0.4, seed=2)


def loss(params, model, rngs=None):
  logits_BTV = model.apply(params, TOKENS, mask=MASK, rngs=rngs)
  return -jax.nn.log_softmax(logits_BTV)[..., 4].mean(), logits_BTV


@functools.cache
def loss_logits_and_gradients(drops=False, **changes):
  """Of a changed model; the gradients as of the plain one."""
  params = plain_params()
  if changes.get("scan_layers"):
    params = stack_layers(params)
  # XLA compiles this generator in a quarter of the default one's time.
  rngs = {"dropout": jax.random.key(3, impl="unsafe_rbg")} if drops else None
  run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
  (value, logits_BTV), gradients = run(params, model(**changes), rngs)
  return value, logits_BTV, unstack_layers(gradients)


def num_kept(model, params) -> int:
  """How many values the forward pass keeps for the backward pass."""
  kept = jax.eval_shape(lambda p: jax.vjp(lambda p: loss(p, model)[0], p)[1], params)
  return sum(leaf.size for leaf in jax.tree.leaves(kept))


class EqualsThePlainLoopTest(chex.TestCase):
  @parameterized.parameters(
    (False, "full"), (True, "none"), (True, "dots"), (True, "scores")
  )
  def test_logits_loss_and_gradients(self, scan_layers, remat):
    self.assert_equal(scan_layers, remat)

  @parameterized.parameters((False, "dots"), (True, "full"), (False, "scores"))
  @pytest.mark.slow
  def test_so_are_the_others(self, scan_layers, remat):
    self.assert_equal(scan_layers, remat)

  def assert_equal(self, scan_layers, remat):
    expected = loss_logits_and_gradients()
    found = loss_logits_and_gradients(scan_layers=scan_layers, remat=remat)
    assert_close(found, expected, 2 * ROUNDINGS, scale=sizes(expected))

  @pytest.mark.slow
  def test_what_is_computed_twice_drops_the_same(self):
    self.assert_drops_the_same(True, "dots")
    self.assert_drops_the_same(True, "scores")

  @parameterized.parameters((False, "dots"), (False, "full"), (False, "scores"))
  @pytest.mark.slow
  def test_so_do_layers_apart(self, scan_layers, remat):
    self.assert_drops_the_same(scan_layers, remat)

  def assert_drops_the_same(self, scan_layers, remat):
    drops = dict(drops=True, scan_layers=scan_layers, dropout_rate=0.5)
    expected = loss_logits_and_gradients(**drops)
    found = loss_logits_and_gradients(**drops, remat=remat)
    assert_close(found, expected, 2 * ROUNDINGS, scale=sizes(expected))
    self.assertGreater(abs(expected[0] - loss_logits_and_gradients()[0]), 0.01)

  def test_each_policy_keeps_less(self):
    self.assert_each_keeps_less(scan_layers=True)

  @pytest.mark.slow  # the policies are the same
  def test_so_it_does_of_layers_apart(self):
    self.assert_each_keeps_less(scan_layers=False)

  def assert_each_keeps_less(self, scan_layers):
    params = plain_params()
    if scan_layers:
      params = stack_layers(params)
    none, scores, dots, full = (
      num_kept(model(scan_layers=scan_layers, remat=remat), params) for remat in REMAT
    )
    self.assertLess(full, dots)
    self.assertLess(dots, none)
    self.assertLess(scores, none - L * CONFIG.num_heads * B * T * T)
    # the weights, each layer's input, and not much besides
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    self.assertLess(full, num_params + (L + 12) * B * T * CONFIG.embed_dim)

  def test_each_layer_drops_its_own(self):
    class Layer(nn.Module):
      @nn.compact
      def __call__(self, x_BTD, mask):
        return x_BTD + Dropout(0.5)(jnp.ones_like(x_BTD)), None

    class Layers(nn.Module):
      @nn.compact
      def __call__(self, x_BTD):
        return scan_blocks(Layer(), 8, x_BTD, None)

    rngs = {"dropout": jax.random.key(0)}
    sums = np.asarray(
      jax.jit(Layers().apply)({}, np.zeros((1, 4, 50), "f4"), rngs=rngs)
    )
    # each layer adds 0 or 2: one mask for all would give 0 or 16 everywhere
    self.assertEqual(set(np.unique(sums)) - set(range(0, 17, 2)), set())
    share = 1 - 2 * (1 + 8) / 2**8  # of eight masks, two to six
    five_standard_errors = 5 * np.sqrt(share * (1 - share) / sums.size)
    spread = np.mean((sums > 2) & (sums < 14))
    self.assertLess(abs(spread - share), five_standard_errors)


class ConversionTest(chex.TestCase):
  def test_layers_are_stacked_in_order(self):
    params = plain_params()
    stacked = jax.tree.map(np.asarray, stack_layers(params))
    names = {"blocks", "final_norm", "token_embedding"}
    self.assertEqual(set(stacked["params"]), names)
    for layer in range(L):
      chex.assert_trees_all_equal(
        jax.tree.map(
          lambda leaf, layer=layer: leaf[layer], stacked["params"]["blocks"]
        ),
        params["params"][f"blocks_{layer}"],
      )
    chex.assert_trees_all_equal(unstack_layers(stacked), params)
    self.assertEqual(
      jax.tree.structure(unstack_layers(stacked)), jax.tree.structure(params)
    )

  def test_more_than_ten_layers_keep_their_order(self):
    params = {"params": {f"blocks_{i}": {"w": np.full(2, i)} for i in range(12)}}
    stacked = stack_layers(params)["params"]["blocks"]["w"]
    np.testing.assert_array_equal(stacked[:, 0], np.arange(12))
    chex.assert_trees_all_equal(
      unstack_layers({"params": {"blocks": {"w": stacked}}}), params
    )

  def test_twice_is_once(self):
    params = plain_params()
    stacked = stack_layers(params)
    chex.assert_trees_all_equal(stack_layers(stacked), stacked)
    for same, leaf in zip(
      jax.tree.leaves(unstack_layers(params)), jax.tree.leaves(params), strict=True
    ):
      self.assertIs(same, leaf)

  @parameterized.parameters("adamw", "muon", "lion")
  def test_a_train_state_becomes_that_of_the_stacked_model_and_comes_back(self, name):
    optimizer = make_optimizer(
      OptimizerConfig(
        name=name,
        learning_rate=0.1,
        warmup_steps=0,
        weight_decay=0.1,
        beta1=0.9,
        beta2=0.99,
        max_grad_norm=1.0,
      ),
      lambda step: 0.1,
    )
    abstract = abstract_state(model(), optimizer, one_device_mesh())
    rng = np.random.default_rng(3)
    state = jax.tree.map(
      lambda leaf: rng.integers(0, 99, leaf.shape).astype(leaf.dtype),
      abstract.replace(rng=abstract.step),
    )
    stacked = stack_layers(state)
    expected = abstract_state(model(scan_layers=True), optimizer, one_device_mesh())
    expected = expected.replace(rng=expected.step)
    chex.assert_trees_all_equal_shapes_and_dtypes(stacked, expected)
    self.assertEqual(jax.tree.structure(stacked), jax.tree.structure(expected))
    self.assertNotIn("blocks_0", str(jax.tree.structure(stacked)))
    back = unstack_layers(stacked)
    self.assertIsInstance(back, TrainState)
    chex.assert_trees_all_equal(back, state)
    self.assertEqual(jax.tree.structure(back), jax.tree.structure(state))


class RefusedTest(chex.TestCase):
  def test_layers_that_differ(self):
    with self.assertRaisesRegex(InputError, "model.scan_layers is True: must be False"):
      model(scan_layers=True, scale_attention_by_layer=True)

  def test_an_unknown_policy(self):
    with self.assertRaisesRegex(InputError, "model.remat 'dot': did you mean 'dots'"):
      model(remat="dot")

  def test_a_cache_for_stacked_layers(self):
    stacked = model(scan_layers=True)
    cache = empty_cache(CONFIG, B, T)
    with self.assertRaisesRegex(InputError, "must be False with a cache"):
      params = stack_layers(plain_params())
      extend = functools.partial(stacked.apply, cache=cache, method="extend")
      jax.eval_shape(extend, params, TOKENS)

  def test_plain_undoes_both(self):
    self.assertEqual(model(scan_layers=True, remat="full").config.plain, CONFIG)
