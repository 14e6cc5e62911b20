"""The lesson on order, without its trainings: what it measures, and its verdict."""

import dataclasses
import math
from typing import Any
from unittest import mock

from absl.testing import parameterized
import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax import GPT2Config
from lessons import order
from lessons.training import experiment
from tests.close import assert_close, ROUNDINGS
from tests.lessons.stubs import (
  all_but,
  figures,
  Given,
  held,
  picture_size,
  table,
  train_giving,
)
from tests.params import shapes_of


def random_params(model, seed=0):
  """Of the size of `init_params`, without compiling a program for it."""
  rng = np.random.default_rng(seed)

  def leaf(like):  # biases and scales about 1
    return rng.normal(like.ndim == 1, 0.02, like.shape).astype("f4")

  return jax.tree.map(leaf, nn.unbox(shapes_of(model)))


@dataclasses.dataclass(frozen=True)
class Shouts:
  """In place of a GPT2: each logit is its token, and its position a hundredfold."""

  config: GPT2Config

  def apply(self, params: Any, tokens_BT: jax.Array) -> jax.Array:
    return (tokens_BT + 100.0 * jnp.arange(tokens_BT.shape[1])[None])[..., None]


class ShufflingTest(chex.TestCase):
  def test_the_mask_tells_two_layers_the_order_but_not_one(self):
    with mock.patch.object(order, "init_params", random_params):
      one, two = order.change_by_shuffling(1), order.change_by_shuffling(2)
    self.assertEqual((one["layers"], two["layers"]), (1, 2))
    for figure in (one["no mask"], one["causal mask"], two["no mask"]):
      self.assertLess(figure, ROUNDINGS * 2**-24)
    self.assertBetween(two["causal mask"], 0.01, 1.0)

  def test_is_the_largest_change_by_the_largest_logit(self):
    with (
      mock.patch.object(order, "init_params", return_value={}),
      mock.patch.object(order, "GPT2", Shouts),
    ):
      change = order.change_by_shuffling(1)
    # 16 tokens: a token that goes by i places changes its logit by 100 i of 1500
    places = change["no mask"] * 15
    self.assertBetween(places, 7.4, 15.0)
    self.assertAlmostEqual(places, round(places), delta=0.2)
    self.assertEqual(change["causal mask"], 0.0)  # the last token stays where it was


class BagTest(chex.TestCase):
  def test_floor_of_a_bag_is_what_it_is_to_be_expected(self):
    """Of n symbols before, c are the last one's equals, itself included: ln(n / c)."""
    p, means, variances = 1 / 16, [], []
    for n in range(1, 16):
      k = np.arange(n)
      chance = [math.comb(n - 1, i) * p**i * (1 - p) ** (n - 1 - i) for i in k]
      values = np.log(n / (k + 1))
      means.append(np.dot(chance, values))
      variances.append(np.dot(chance, (values - means[-1]) ** 2))
    config, _ = experiment(order.CopyConfig(), order.changes(1, "none", 1))
    num_labels = 15 * config.eval.num_windows  # whose symbols are drawn one by one
    standard_error = math.sqrt(np.mean(variances) / num_labels)
    found = order.bag_floor()
    self.assertAlmostEqual(found, np.mean(means), delta=5 * standard_error)


class VerdictTest(chex.TestCase):
  """On the figures of the page, and on some that one finding does not bear."""

  BAG = 1.588

  def run_on(self, shuffling=None, losses=None, reduced=False, picture=False):
    """Args: (layers, column) -> figure; (layers, positions, seed) -> loss."""

    def change_by_shuffling(layers):
      figures = {"no mask": 4e-7, "causal mask": 4e-7 if layers == 1 else 0.2}
      given = {c: f for (n, c), f in (shuffling or {}).items() if n == layers}
      return {"layers": layers, **figures, **given}

    def outcome(config, seed):
      kind = config.model.num_layers, config.model.positional_encoding
      loss = (1.627 if kind == (1, "none") else 0.002) + 1e-4 * seed
      return Given((losses or {}).get((*kind, seed), loss))

    with (
      mock.patch.object(order, "new_figure", figures(picture)),
      mock.patch.object(order, "change_by_shuffling", change_by_shuffling),
      mock.patch.object(order, "bag_floor", return_value=self.BAG),
      mock.patch.object(order, "train", train_giving(outcome)),
    ):
      return order.run(reduced)

  def test_holds(self):
    report = self.run_on(picture=True)
    self.assertEqual(held(report), [True] * 5)
    self.assertBetween(picture_size(report), 5_000, 150_000)
    rows = table(report, "Change")
    self.assertEqual([row["layers"] for row in rows], [1, 2, 4, 8])
    rows = table(report, "Saying")
    kinds = {(row["layers"], row["positions"]): row for row in rows}
    self.assertLen(kinds, 4)
    one = kinds[1, "none"]
    assert_close(one["loss (nats)"], 1.6271)
    self.assertEqual((one["lowest"], one["highest"]), (1.627, 1.6272))
    self.assertEqual(one["floor"], self.BAG)
    self.assertEqual(kinds[2, "none"]["floor"], 0.0)

  def test_holds_at_its_reduced_size(self):
    self.assertEqual(held(self.run_on(reduced=True)), [True] * 5)

  @parameterized.parameters(
    (0, {(8, "no mask"): 2e-5}, {}),
    (1, {(1, "causal mask"): 2e-5}, {}),
    (1, {(4, "causal mask"): 0.009}, {}),
    (2, {}, {(1, "none", 2): BAG + 0.06}),
    (2, {}, {(1, "none", 1): BAG - 0.02}),  # nothing can be below its floor
    (3, {}, {(1, "sinusoidal", 2): 0.17}),
    (4, {}, {(2, "none", 0): 0.17}),
  )
  def test_does_not_hold(self, finding, shuffling, losses):
    report = self.run_on(shuffling, losses)
    self.assertEqual(held(report), all_but(5, finding))
