"""The lesson on two relations, at its reduced size, and its dataset."""

import collections
import math

import chex
import numpy as np

from gpt2_flax.datasets import floor
from gpt2_flax.datasets.pipeline import validation_windows
from lessons import relations
from lessons.relations import EitherConfig


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
      self.assertAlmostEqual(row.sum(), 1.0)
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
    measured = floor(dataset, validation_windows(dataset, 300))
    self.assertAlmostEqual(measured, math.log(2) * 15 / 16, delta=0.01)


class RelationsTest(chex.TestCase):
  def test_looks_back_is_the_mean_weight_on_an_offset(self):
    weights = np.zeros((relations.LENGTH, relations.LENGTH))
    for i in range(3, relations.LENGTH):
      weights[i, i - 2] = 0.75
      weights[i, i - 1] = 0.25 if i % 2 else 0.0
    self.assertAlmostEqual(relations.looks_back(weights, 2), 0.75)
    self.assertAlmostEqual(relations.looks_back(weights, 1), 0.25 * 7 / 13)
