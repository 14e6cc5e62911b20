"""The lesson on the limit, at its reduced size, and its dataset against brute force."""

import itertools
import math

from absl.testing import parameterized
import chex
import numpy as np

from gpt2_flax.errors import InputError
from lessons import limit
from lessons.limit import InContextConfig


def log_probability(symbols, size, alpha):
  """ln P(symbols), the table integrated out: one ratio of gammas a row."""
  counts = np.zeros((size, size))
  for before, after in itertools.pairwise(symbols):
    counts[before, after] += 1
  total = -math.log(size) if symbols else 0.0
  for row in counts:
    total += math.lgamma(size * alpha) - math.lgamma(size * alpha + row.sum())
    total += sum(math.lgamma(alpha + count) - math.lgamma(alpha) for count in row)
  return total


class InContextMarkovTest(chex.TestCase):
  @parameterized.parameters((2, 0.5), (3, 1.7))
  def test_oracle_is_bayes_rule_for_every_short_sequence(self, size, alpha):
    dataset = InContextConfig(size, alpha).make(5)
    for symbols in itertools.product(range(size), repeat=5):
      rows = dataset.next_token_probabilities(np.append(0, np.add(symbols, 1)))
      for n in range(6):
        before = log_probability(symbols[:n], size, alpha)
        expected = [0.0] + [
          math.exp(log_probability((*symbols[:n], x), size, alpha) - before)
          for x in range(size)
        ]
        chex.assert_trees_all_close(rows[n], np.array(expected), atol=1e-12)

  def test_samples_are_as_frequent_as_they_are_probable(self):
    dataset = InContextConfig(num_symbols=2).make(4)
    times = dict.fromkeys(itertools.product(range(2), repeat=4), 0)
    for i in range(4000):
      window = dataset.window("train", i)
      self.assertEqual((window[0], len(window)), (0, 5))
      times[tuple(int(token) - 1 for token in window[1:])] += 1
    for symbols, count in times.items():
      p = math.exp(log_probability(symbols, 2, 0.5))
      self.assertAlmostEqual(count, 4000 * p, delta=5 * math.sqrt(4000 * p * (1 - p)))

  @parameterized.parameters(
    ({"num_symbols": 1}, "data.num_symbols is 1: must be 2 to 26"),
    ({"concentration": 0.0}, "data.concentration is 0.0: must be above 0"),
    ({"seed": -1}, "data.seed is -1"),
  )
  def test_names_the_field_that_cannot_be(self, fields, message):
    with self.assertRaisesRegex(InputError, message):
      InContextConfig(**fields)


class LimitTest(chex.TestCase):
  def test_divergence_by_hand(self):
    p = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    q = np.array([[0.25, 0.25, 0.5], [0.5, 0.5, 0.0]])
    with np.errstate(divide="ignore"):
      kl = limit.divergence(p, np.log(q))
    chex.assert_trees_all_close(kl, np.log([2.0, 2.0]))
