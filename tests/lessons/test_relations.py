"""The lesson on two relations, without its trainings; its dataset; its verdict."""

import collections
import math
from unittest import mock

from absl.testing import parameterized
import chex
import jax.numpy as jnp
import numpy as np

from gpt2_flax import GPT2
from gpt2_flax.datasets import floor
from gpt2_flax.datasets.pipeline import validation_windows
from gpt2_flax.interpret import Trace
from gpt2_flax.transformer import num_params
from lessons import relations
from lessons.relations import EitherConfig, LENGTH
from lessons.training import experiment, Trained
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


class EitherTest(chex.TestCase):
  def test_labels_are_drawn_as_the_oracle_says(self):
    """Counted for each pair of symbols before, over many windows."""
    dataset = EitherConfig(num_symbols=3).make(12)
    batch = dataset.batch(validation_windows(dataset, 2000))
    counts = collections.defaultdict(lambda: np.zeros(4))
    rows = {}
    for tokens, labels in zip(batch["inputs"], batch["targets"], strict=True):
      chex.assert_trees_all_equal(labels[:3], np.full(3, -1, np.int32))
      probabilities = dataset.next_token_probabilities(tokens)
      chex.assert_trees_all_equal(probabilities[:3], np.zeros((3, 4)))
      for i in range(3, 12):
        pair = (tokens[i - 2], tokens[i - 1])
        counts[pair][labels[i]] += 1
        rows[pair] = probabilities[i]
    self.assertLen(rows, 9)
    for pair, row in rows.items():
      assert_close(row.sum(), 1.0)
      visits = counts[pair].sum()
      bound = 5 * np.sqrt(visits * row * (1 - row)) + 1e-9
      np.testing.assert_array_less(abs(counts[pair] - visits * row), bound)

  def test_shuffles_differ_unless_they_are_the_same(self):
    dataset = EitherConfig().make(8)
    self.assertCountEqual(dataset.f, range(17))
    self.assertCountEqual(dataset.g, range(17))
    self.assertTrue((dataset.f != dataset.g).any())
    same = EitherConfig(same=True).make(8)
    chex.assert_trees_all_equal(same.f, same.g)

  def test_floor_is_ln_2_less_the_coincidences(self):
    """With f = g, one pair of symbols in 16 is of one kind, and then it is certain."""
    dataset = EitherConfig(same=True).make(40)
    windows = validation_windows(dataset, 300)
    num_labels = (dataset.batch(windows)["targets"] >= 0).sum()
    standard_error = math.log(2) * math.sqrt(15) / 16 / math.sqrt(num_labels)
    measured = floor(dataset, windows)
    self.assertAlmostEqual(measured, math.log(2) * 15 / 16, delta=5 * standard_error)


def looking(one_back, two_back):
  """Weights [T, S] of a head that looks so at the two, and at itself else."""
  rest = (1 - one_back - two_back) * np.eye(LENGTH)
  return rest + one_back * np.eye(LENGTH, k=-1) + two_back * np.eye(LENGTH, k=-2)


class RelationsTest(chex.TestCase):
  def test_looks_back_is_the_mean_weight_on_an_offset(self):
    weights = np.zeros((LENGTH, LENGTH))
    for i in range(3, LENGTH):
      weights[i, i - 2] = 0.75
      weights[i, i - 1] = 0.25 if i % 2 else 0.0
    assert_close(relations.looks_back(weights, 2), 0.75)
    assert_close(relations.looks_back(weights, 1), 0.25 * 7 / 13)

  def test_models_differ_in_heads_and_the_control_in_its_relations_alone(self):
    sizes, of = set(), {}
    for name, (data, num_heads) in relations.MODELS.items():
      changes = relations.CHANGES | {"model.num_heads": num_heads}
      config, dataset = experiment(data, changes)
      model = GPT2(config.model)
      sizes.add(num_params(shapes_of(model)))
      self.assertEqual((model.config.num_layers, model.config.feed_forward), (1, False))
      of[name] = num_heads, bool((dataset.f == dataset.g).all())
    self.assertLen(sizes, 1)
    expected = {
      "one head": (1, False),
      "two heads": (2, False),
      "one head, f = g": (1, True),
    }
    self.assertEqual(of, expected)

  def test_attention_is_the_mean_over_the_texts(self):
    data, heads = EitherConfig(seed=5), np.array([looking(0.6, 0.2), looking(0, 1)])

    def trace(model, params, tokens_BT, edits, taps):
      dataset = data.make(LENGTH)
      texts = dataset.batch(validation_windows(dataset, 128))["inputs"]
      chex.assert_trees_all_equal(tokens_BT, texts)
      of_text = np.linspace(0, 2, len(texts))[None, None, :, None, None]
      return None, Trace(**{taps[0]: params[None, :, None] * of_text})

    with mock.patch.object(relations, "trace", trace):
      trained = Trained(None, jnp.asarray(heads), 0.0, 0.0, [])
      measured = relations.attention(trained, data)
    assert_close(measured, heads)


class VerdictTest(chex.TestCase):
  """On the figures of the page, and on some that one finding does not bear."""

  def run_on(self, gaps=None, heads=None, reduced=False, picture=False):
    """Args: (model, seed) -> gap, or (one back, two back) of each head."""
    page = {"one head": 0.72, "two heads": 0.015, "one head, f = g": 0.04}
    names = {(data, num): name for name, (data, num) in relations.MODELS.items()}

    def outcome(config, seed):
      name = names[config.data, config.model.num_heads]
      gap = (gaps or {}).get((name, seed), page[name])
      looks = [(0.45, 0.44)] if name != "two heads" else [(0.98, 0.0), (0.01, 0.97)]
      looks = looks[::-1] if seed == 2 else looks  # which head is which is chance
      looks = (heads or {}).get((name, seed), looks)
      return Given(0.65 + gap, 0.65, np.array([looking(*look) for look in looks]))

    with (
      mock.patch.object(relations, "new_figure", figures(picture)),
      mock.patch.object(relations, "attention", lambda trained, data: trained.params),
      mock.patch.object(relations, "train", train_giving(outcome)),
    ):
      return relations.run(reduced)

  def test_holds(self):
    report = self.run_on(picture=True)
    self.assertEqual(held(report), [True] * 3)
    self.assertBetween(picture_size(report), 5_000, 150_000)
    rows = table(report, "After")
    self.assertLen(rows, 9)
    one, two = rows[0], rows[3]
    self.assertEqual(
      (one["model"], one["1 back"], one["2 back"]), ("one head", "0.45", "0.44")
    )
    assert_close(one["loss"], 1.37)
    self.assertEqual((two["1 back"], two["2 back"]), ("0.98, 0.01", "0.00, 0.97"))

  def test_holds_at_its_reduced_size(self):
    self.assertEqual(held(self.run_on(reduced=True)), [True] * 3)

  @parameterized.parameters(
    (0, {("two heads", 1): 0.11}, {}),
    (0, {("one head", 2): 0.38}, {}),
    (1, {}, {("two heads", 1): [(0.97, 0.02), (0.97, 0.02)]}),
    (1, {}, {("two heads", 2): [(0.98, 0.0), (0.12, 0.88)]}),
    (2, {("one head, f = g", 0): 0.16}, {}),
  )
  def test_does_not_hold(self, finding, gaps, heads):
    self.assertEqual(held(self.run_on(gaps, heads)), all_but(3, finding))
