"""The lesson on the cache: what it measures, and its verdict on given figures."""

import dataclasses
import json
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax import GPT2, GPT2Config
from lessons import cache
from lessons.training import Trained
from tests.close import assert_close
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


class MeasureTest(chex.TestCase):
  def test_tokens_one_by_one_give_the_logits_of_all_at_once(self):
    model = GPT2(GPT2Config(7, 5, 1, 2, 8, positional_encoding="rotary"))
    tokens = np.array([[1, 6, 0, 3, 3], [2, 2, 5, 4, 1]])
    params = jax.jit(model.init)(jax.random.key(0), tokens)
    params = jax.tree.map(lambda x: 20 * x, params)  # so that heads choose
    found = cache.read_one_by_one(model, params, tokens)
    assert_close(found, jax.jit(model.apply)(params, tokens))

  def test_differences_are_shares_of_the_largest_logit(self):
    """Of a reader whose logits are (token, 10), and of a cache with an error of 1."""
    tokens = np.array([[1, 2, 3, 4], [11, 6, 7, 8]])

    def read_whole(model, params, tokens_BT):
      return np.stack([tokens_BT, np.full_like(tokens_BT, 10)], axis=-1).astype(float)

    def read_one_by_one(model, params, tokens_BT):
      logits = read_whole(model, params, tokens_BT)
      if tokens_BT[0, 0] != 1:  # the first row begins like the second
        np.testing.assert_array_equal(tokens_BT, [[11, 6, 3, 4], [1, 2, 7, 8]])
        return logits + 5
      logits[1, 0, 0] -= 1.1  # from 11, above 10, to 9.9
      return logits

    with (
      mock.patch.object(cache, "read_whole", read_whole),
      mock.patch.object(cache, "read_one_by_one", read_one_by_one),
    ):
      found = cache.apart(Trained(None, None, 0.0, 0.0, []), tokens)
    expected = {"difference": 0.1, "same choice": 7 / 8, "wrong cache": 5 / 11}
    assert_close(found, expected)

  def test_counts_the_products_of_a_program(self):
    def program(x, y):
      inner = jax.jit(lambda a: jnp.einsum("bij,bjk->bik", a, a))
      return inner(x), x[0] @ y

    x, y = jnp.zeros((2, 3, 3)), jnp.zeros((3, 5))
    self.assertEqual(cache.counted(program, x, y), 2 * 27 + 45)

  def test_formula_by_hand_and_as_counted(self):
    config = GPT2Config(7, 6, 2, 2, 4)
    # 2 layers of 4 4^2 + 2 4 16 + 2 6 4, and 7 4
    self.assertEqual(cache.formula(config, 1, 6), 2 * (64 + 128 + 48) + 28)
    self.assertEqual(cache.formula(config, 6, 6), 6 * 480 + 28)
    model = GPT2(config)
    with mock.patch.object(cache, "seconds", return_value=0.001):
      costs = cache.next_token(model, shapes_of(model), 6)
    self.assertEqual(
      (costs["multiply-adds, no cache"], costs["with cache"]), (2908, 508)
    )
    self.assertEqual(costs["formula, no cache"], 2908)
    self.assertEqual(costs["formula, with cache"], 508)
    self.assertEqual(costs["ms, with cache"], 1.0)

  @parameterized.parameters(("float32", 4), ("bfloat16", 2))
  def test_memory_by_hand(self, dtype, size):
    config = GPT2Config.published("small", dtype=dtype)
    self.assertEqual(cache.bytes_a_token(config), 2 * 12 * 768 * size)
    self.assertEqual(cache.cache_bytes(config, 100), 100 * 2 * 12 * 768 * size)


def run_on(difference=3e-7, wrong=0.4, cost=None, more_bytes=0, reduced=False):
  """Runs the lesson on figures like the page's, and on given ones of seed 1."""

  def apart(trained, tokens):
    spoilt = trained.params == (1, "rotary")
    return {
      "difference": difference if spoilt else 3e-7,
      "same choice": 1.0,
      "wrong cache": wrong if spoilt else 0.4,
    }

  def next_token(model, params, length):
    given = {
      "tokens": length,
      "multiply-adds, no cache": 1000 * length,
      "with cache": 1010,
      "formula, no cache": 1000 * length,
      "formula, with cache": 1010,
      "ms, no cache": 10.0 * length,
      "ms, with cache": 200.0,
    }
    return given | (cost or {})

  def outcome(config, seed):
    return Given(0.0, params=(seed, config.model.positional_encoding))

  exact = cache.cache_bytes
  with (
    mock.patch.object(cache, "train", train_giving(outcome)),
    mock.patch.object(cache, "apart", apart),
    mock.patch.object(cache, "init_params"),
    mock.patch.object(cache, "next_token", next_token),
    mock.patch.object(cache, "cache_bytes", lambda *a: exact(*a) + more_bytes),
    mock.patch.object(cache, "validation_windows", return_value=np.ones((2, 49), int)),
    mock.patch.object(cache, "new_figure", figures(not reduced and not cost)),
  ):
    return cache.run(reduced)


class VerdictTest(chex.TestCase):
  def test_holds(self):
    report = run_on()
    self.assertEqual(held(report), [True] * 4)
    json.dumps([dataclasses.asdict(finding) for finding in report.findings])
    self.assertBetween(picture_size(report), 5_000, 150_000)
    rows = table(report, "Reading")
    self.assertEqual([r["positions"] for r in rows[2:4]], ["sinusoidal", "rotary"])
    self.assertEqual([r["seed"] for r in rows[2:4]], [2, 0])
    self.assertIn("51 times sooner", report.findings[2].text)
    self.assertIn("73,728 bytes", report.findings[3].text)

  def test_holds_at_its_reduced_size(self):
    self.assertEqual(held(run_on(reduced=True)), [True] * 4)

  @parameterized.parameters(
    (0, {"difference": 2e-5}),
    (0, {"wrong": 0.005}),
    (1, {"cost": {"formula, with cache": 1011}}),
    (1, {"cost": {"formula, no cache": 1011}}),
    (2, {"cost": {"with cache": 2100, "formula, with cache": 2100}}),
    (3, {"more_bytes": 1, "reduced": True}),
  )
  def test_does_not_hold(self, finding, given):
    self.assertEqual(held(run_on(**given)), all_but(4, finding))

  def test_the_clock_does_not_decide(self):
    self.assertEqual(held(run_on(cost={"ms, with cache": 1e6})), [True] * 4)
