"""The chain's long run, computed another way, and its samples."""

import itertools
import math

from absl.testing import parameterized
import chex
import numpy as np

from gpt2_flax.datasets.markov import MarkovConfig
from gpt2_flax.errors import InputError
from tests.close import assert_close, ROUNDINGS

ORDERS = (1, 2, 3)


def small(order, **fields):
  return MarkovConfig(num_symbols=4, order=order, **fields)


def long_run(transitions):
  """Context -> its probability, from the leading eigenvector of the chain over
  contexts, which is written out entry by entry; and the roundings in it.

  A solver's are magnified by one over the gap between the largest eigenvalue, 1, and
  the next (Meyer, 1994, "Sensitivity of the Stationary Distribution of a Markov
  Chain").
  """
  num_symbols, order = transitions.shape[-1], transitions.ndim - 1
  contexts = list(itertools.product(range(num_symbols), repeat=order))
  step = np.zeros((len(contexts), len(contexts)))
  for i, context in enumerate(contexts):
    for symbol in range(num_symbols):
      j = contexts.index((*context[1:], symbol))
      step[i, j] += transitions[(*context, symbol)]
  values, vectors = np.linalg.eig(step.T)
  leading = vectors[:, np.argmax(values.real)].real
  gap = 1 - np.sort(np.abs(values))[-2]
  probabilities = dict(zip(contexts, leading / leading.sum(), strict=True))
  return probabilities, ROUNDINGS / gap


class ChainTest(chex.TestCase):
  @parameterized.parameters(*ORDERS)
  def test_stationary_is_where_the_chain_stays(self, order):
    chain = small(order).make(8)
    chex.assert_shape(chain.transitions, (4,) * (order + 1))
    assert_close(chain.transitions.sum(-1), np.ones((4,) * order))
    self.assertGreater(chain.transitions.min(), 0.0)
    joint = chain.stationary[..., None] * chain.transitions
    probabilities, roundings = long_run(chain.transitions)
    assert_close(joint.sum(axis=0), chain.stationary, roundings)
    expected = np.zeros_like(chain.stationary)
    for context, probability in probabilities.items():
      expected[context] = probability
    assert_close(chain.stationary, expected, roundings)

  @parameterized.parameters(*ORDERS)
  def test_entropy_rate_is_that_of_the_long_run(self, order):
    chain = small(order).make(8)
    expected = 0.0
    probabilities, roundings = long_run(chain.transitions)
    for context, probability in probabilities.items():
      for p in chain.transitions[context]:
        expected -= probability * p * math.log(p)
    assert_close(chain.entropy_rate(), expected, roundings)

  @parameterized.parameters(*ORDERS)
  def test_entropy_rate_is_the_surprise_of_its_samples(self, order):
    chain = small(order).make(200)
    means = []
    for i in range(300):
      symbols = chain.window("train", i)[1:] - 1
      contexts = np.lib.stride_tricks.sliding_window_view(symbols, order + 1)
      means.append(-np.log(chain.transitions[tuple(contexts.T)]).mean())
    standard_error = np.std(means) / math.sqrt(len(means))
    self.assertLess(standard_error, 0.01)
    self.assertAlmostEqual(
      chain.entropy_rate(), np.mean(means), delta=5 * standard_error
    )

  def test_large_concentration_is_nearly_uniform_and_small_nearly_certain(self):
    rates = [
      small(2, concentration=concentration).make(8).entropy_rate()
      for concentration in (0.01, 0.3, 1.0, 1000.0)
    ]
    self.assertEqual(rates, sorted(rates))
    self.assertLess(rates[0], 0.1)
    # A row's variances sum to (3 / 4) / 4001, and its entropy misses twice as much.
    self.assertBetween(math.log(4) - rates[-1], 0, 5 * 2 * 0.75 / 4001)

  def test_seed_decides_the_chain(self):
    one, again, other = (small(2, seed=seed).make(8).transitions for seed in (0, 0, 1))
    chex.assert_trees_all_equal(one, again)
    self.assertGreater(abs(one - other).max(), 0.1)


class SampleTest(chex.TestCase):
  @parameterized.parameters(*ORDERS)
  def test_each_context_occurs_and_goes_on_as_the_chain_says(self, order):
    """Counted over all positions, so also that sequences begin in the long run."""
    chain = small(order, concentration=1.0).make(60)
    counts = np.zeros_like(chain.transitions)
    begins = np.zeros_like(chain.stationary)
    for i in range(1000):
      symbols = chain.window("train", i)[1:] - 1
      begins[tuple(symbols[:order])] += 1
      grams = np.lib.stride_tricks.sliding_window_view(symbols, order + 1)
      np.add.at(counts, tuple(grams.T), 1)

    visits = counts.sum(-1, keepdims=True)
    p = chain.transitions
    bound = 5 * np.sqrt(visits * p * (1 - p)) + 5
    np.testing.assert_array_less(abs(counts - visits * p), bound)

    q = chain.stationary
    bound = 5 * np.sqrt(1000 * q * (1 - q)) + 5
    np.testing.assert_array_less(abs(begins - 1000 * q), bound)

  @parameterized.parameters(*ORDERS)
  def test_oracle_rows_are_those_of_the_context(self, order):
    chain = small(order).make(30)
    tokens = chain.window("train", 0)
    rows = chain.next_token_probabilities(tokens)
    chex.assert_trees_all_equal(rows[:, 0], np.zeros(31))  # the start token
    for i in range(order, 31):
      context = tuple(int(token) - 1 for token in tokens[i - order + 1 : i + 1])
      assert_close(rows[i, 1:], chain.transitions[context])

  @parameterized.parameters(*ORDERS)
  def test_oracle_begins_in_the_long_run(self, order):
    chain = small(order).make(30)
    tokens = chain.window("train", 0)[: order + 1]
    rows = chain.next_token_probabilities(tokens)
    begins, roundings = long_run(chain.transitions)
    seen = ()
    for i in range(order):  # P(next | seen) = P(seen, next) / P(seen)
      of = [
        sum(p for context, p in begins.items() if context[: i + 1] == (*seen, symbol))
        for symbol in range(4)
      ]
      assert_close(rows[i, 1:], np.array(of) / sum(of), roundings)
      seen += (int(tokens[i + 1]) - 1,)


class MarkovConfigTest(chex.TestCase):
  @parameterized.parameters(
    ({"num_symbols": 1}, "data.num_symbols is 1: must be 2 to 26"),
    ({"num_symbols": 27, "order": 1}, "data.num_symbols is 27"),
    ({"order": 0}, "data.order is 0"),
    ({"num_symbols": 8, "order": 5}, "data.order is 5.*at most 4096"),
    ({"concentration": 0.0}, "data.concentration is 0.0: must be above 0"),
    ({"concentration": -1.0}, "data.concentration is -1.0"),
  )
  def test_names_the_field_that_cannot_be(self, fields, message):
    with self.assertRaisesRegex(InputError, message):
      MarkovConfig(**fields)

  def test_largest_chains_can_be_made(self):
    self.assertLen(MarkovConfig(num_symbols=26, order=2).make(8).tokenizer.words, 26)
