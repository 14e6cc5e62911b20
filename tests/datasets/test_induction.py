"""Sequences repeat, and the oracle is Bayes' rule over the period."""

import collections
from fractions import Fraction
import itertools
import math

from absl.testing import parameterized
import chex
import numpy as np

from gpt2_flax.datasets.dataset import floor
from gpt2_flax.datasets.induction import InductionConfig
from gpt2_flax.errors import InputError
from tests.close import assert_close


def smallest_period(symbols):
  for period in range(1, len(symbols) + 1):
    if (symbols[period:] == symbols[:-period]).all():
      return period


def probability(symbols, config):
  """P(the sequence begins with these symbols), exactly: the mean over the periods."""
  total = Fraction(0)
  periods = range(config.min_period, config.max_period + 1)
  for period in periods:
    of_this_period = Fraction(1)
    for i, symbol in enumerate(symbols):
      if i < period:
        of_this_period *= Fraction(1, config.num_symbols)
      elif symbol != symbols[i - period]:
        of_this_period *= 0
    total += of_this_period / len(periods)
  return total


class SampleTest(chex.TestCase):
  def test_repeats_with_each_period_equally_often(self):
    # So many symbols that nothing shorter than the period repeats by chance.
    dataset = InductionConfig(1000, min_period=3, max_period=7).make(48)
    count = collections.Counter(
      smallest_period(dataset.window("train", i)[1:]) for i in range(2000)
    )
    self.assertCountEqual(count, (3, 4, 5, 6, 7))
    standard_error = math.sqrt(2000 * 0.2 * 0.8)
    for times in count.values():
      self.assertAlmostEqual(times, 400, delta=5 * standard_error)

  def test_symbols_are_uniform(self):
    dataset = InductionConfig(num_symbols=5, min_period=8, max_period=8).make(8)
    symbols = np.concatenate([dataset.window("train", i)[1:] for i in range(1000)])
    count = np.bincount(symbols, minlength=6)
    self.assertEqual(count[0], 0)
    bound = np.full(5, 5 * math.sqrt(8000 * 0.2 * 0.8))
    np.testing.assert_array_less(abs(count[1:] - 1600), bound)


class OracleTest(chex.TestCase):
  @parameterized.parameters((2, 1, 3), (3, 2, 4), (2, 2, 2))
  def test_is_bayes_rule_for_every_short_sequence(self, num_symbols, first, last):
    config = InductionConfig(num_symbols, first, last)
    dataset = config.make(6)
    possible = 0
    for symbols in itertools.product(range(num_symbols), repeat=6):
      rows = dataset.next_token_probabilities(np.append(0, np.add(symbols, 1)))
      for n in range(7):
        seen = symbols[:n]
        of_seen = probability(seen, config)
        # After what the language cannot write there is no distribution.
        expected = [
          float(probability((*seen, v), config) / of_seen) if of_seen else 0.0
          for v in range(num_symbols)
        ]
        assert_close(rows[n], np.array([0.0, *expected]))
      possible += bool(of_seen)
    self.assertBetween(possible, num_symbols**last, num_symbols**6 - 1)

  def test_is_sure_once_the_period_has_come_round(self):
    dataset = InductionConfig().make(48)  # periods 4 to 16
    for i in range(300):
      window = dataset.window("train", i)
      rows = dataset.next_token_probabilities(window[:-1])
      of_targets = rows[np.arange(48), window[1:]]
      self.assertGreater(of_targets[32:].min(), 0.999)
      assert_close(of_targets[:4], np.full(4, 1 / 32))

  def test_long_periods_do_not_underflow(self):
    dataset = InductionConfig(min_period=4, max_period=300).make(320)
    for i in range(10):
      rows = dataset.next_token_probabilities(dataset.window("train", i))
      assert_close(rows.sum(axis=1), np.ones(321))

  @parameterized.parameters(1, 5, 48, 60)
  def test_floor_of_one_period_is_what_its_first_round_costs(self, period):
    """The first `period` of 48 targets cost ln 32 each, the others nothing."""
    dataset = InductionConfig(min_period=period, max_period=period).make(48)
    windows = np.stack([dataset.window("validation", i) for i in range(5)])
    expected = math.log(32) * min(period, 48) / 48
    assert_close(floor(dataset, windows), expected)


class InductionConfigTest(chex.TestCase):
  @parameterized.parameters(
    ({"num_symbols": 1}, "data.num_symbols is 1: must be at least 2"),
    ({"min_period": 0}, "data.min_period is 0"),
    ({"min_period": 9, "max_period": 8}, "data.min_period is 9.*max_period.* is 8"),
  )
  def test_names_the_field_that_cannot_be(self, fields, message):
    with self.assertRaisesRegex(InputError, message):
      InductionConfig(**fields)
