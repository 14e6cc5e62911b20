"""What every toy language promises, and the floor that follows from its oracle."""

import collections
import math

from absl.testing import parameterized
import chex
import numpy as np

from examples.brackets import BracketsConfig
from examples.regression import RegressionConfig
from gpt2_flax import datasets
from gpt2_flax.datasets.dataset import floor, ToyLanguage
from gpt2_flax.datasets.grammar import GrammarConfig
from gpt2_flax.datasets.induction import InductionConfig
from gpt2_flax.datasets.markov import MarkovConfig
from gpt2_flax.errors import InputError
from gpt2_flax.tokenizer import WordTokenizer
from tests.close import assert_close

DEFAULTS = (
  ("brackets", BracketsConfig),
  ("regression", RegressionConfig),
  ("grammar", GrammarConfig),
  ("markov", MarkovConfig),
  ("induction", InductionConfig),
)
# Few enough symbols that short prefixes come often.
SMALL = (
  ("brackets", BracketsConfig(num_kinds=2, max_depth=2, open_probability=0.7)),
  ("regression", RegressionConfig(max_x=1, max_slope=1, max_intercept=1, noise=0.2)),
  ("grammar", GrammarConfig()),
  ("hard_grammar", GrammarConfig(vocabulary=2, num_classes=5, num_topics=2, zipf=1.0)),
  ("markov_of_order_1", MarkovConfig(num_symbols=5, order=1)),
  ("markov_of_order_2", MarkovConfig(num_symbols=5, order=2)),
  ("markov_of_order_3", MarkovConfig(num_symbols=4, order=3, seed=1)),
  ("induction", InductionConfig(num_symbols=3, min_period=1, max_period=3)),
)


def draw(dataset, num_windows, split="train"):
  return np.stack([dataset.window(split, i) for i in range(num_windows)])


def assert_within_five_standard_errors(observed, expected, variance):
  """The 5 on top is for rare events, whose tail is Poisson's (Bernstein's bound)."""
  np.testing.assert_array_less(abs(observed - expected), 5 * np.sqrt(variance) + 5)


class WindowsTest(chex.TestCase):
  @parameterized.named_parameters(*DEFAULTS)
  def test_have_one_token_more_than_the_context_and_begin_with_the_start(self, config):
    dataset = config().make(48)
    windows = draw(dataset, 50)
    chex.assert_shape(windows, (50, 49))
    self.assertEqual(windows.dtype, np.int32)
    self.assertEqual(set(windows[:, 0]), {dataset.tokenizer.start_id})
    self.assertNotIn(dataset.tokenizer.start_id, windows[:, 1:])
    self.assertLess(windows.max(), dataset.tokenizer.vocab_size)

  @parameterized.named_parameters(*DEFAULTS)
  def test_depend_on_split_and_index_only(self, config):
    dataset, again = config().make(48), config().make(48)
    windows = draw(dataset, 20)
    backwards = np.stack([again.window("train", i) for i in reversed(range(20))])
    chex.assert_trees_all_equal(windows, draw(dataset, 20), backwards[::-1])
    self.assertLen(np.unique(windows, axis=0), 20)

  @parameterized.named_parameters(*DEFAULTS)
  def test_of_another_seed_are_others(self, config):
    one, other = (draw(config(seed=seed).make(48), 20) for seed in (0, 1))
    self.assertFalse((one == other).all(axis=1).any())

  @parameterized.named_parameters(*DEFAULTS)
  def test_of_validation_are_never_seen_in_training(self, config):
    dataset = config().make(48)
    train = {window.tobytes() for window in draw(dataset, 500)}
    validation = {window.tobytes() for window in draw(dataset, 100, "validation")}
    self.assertLen(validation, 100)
    self.assertTrue(train.isdisjoint(validation))

  @parameterized.named_parameters(*DEFAULTS)
  def test_there_are_as_many_as_one_likes(self, config):
    dataset = config().make(8)
    for split in ("train", "validation"):
      self.assertGreater(dataset.num_windows(split), 10**9)
      chex.assert_shape(dataset.window(split, dataset.num_windows(split) - 1), (9,))

  def test_each_language_has_a_name_in_the_configs(self):
    for name, config in DEFAULTS:
      self.assertIs(datasets.CONFIGS[name], config)


class OracleTest(chex.TestCase):
  @parameterized.named_parameters(*SMALL)
  def test_agrees_with_counting_what_follows_each_short_prefix(self, config):
    dataset = config.make(4)
    followers = collections.defaultdict(collections.Counter)
    for window in draw(dataset, 15_000).tolist():
      for n in range(1, len(window)):
        followers[tuple(window[:n])][window[n]] += 1
    often = {p: count for p, count in followers.items() if count.total() >= 100}
    self.assertGreater(len(often), 15)
    for prefix, count in often.items():
      total = count.total()
      observed = np.array([count[v] for v in range(dataset.tokenizer.vocab_size)])
      probabilities = dataset.next_token_probabilities(np.array(prefix))[-1]
      assert_within_five_standard_errors(
        observed, total * probabilities, total * probabilities * (1 - probabilities)
      )

  @parameterized.named_parameters(*SMALL)
  def test_is_a_distribution_that_fits_all_positions(self, config):
    """Occurrences less probabilities add up to a martingale, also for each token
    and each token before it, so their variance is known without independence."""
    dataset = config.make(48)
    vocab_size = dataset.tokenizer.vocab_size
    occurred, expected, variance = np.zeros((3, vocab_size, vocab_size))
    surprise = entropy = variance_of_surprise = 0.0
    for window in draw(dataset, 400):
      before, after = window[:-1], window[1:]
      rows = dataset.next_token_probabilities(before)
      chex.assert_shape(rows, (48, vocab_size))
      self.assertGreaterEqual(rows.min(), 0.0)
      assert_close(rows.sum(axis=1), np.ones(48))
      of_targets = rows[np.arange(48), after]
      self.assertGreater(of_targets.min(), 0.0)

      np.add.at(occurred, (before, after), 1)
      np.add.at(expected, before, rows)
      np.add.at(variance, before, rows * (1 - rows))
      logs = np.log(rows, where=rows > 0, out=np.zeros_like(rows))
      entropies = -(rows * logs).sum(axis=1)
      surprise -= np.log(of_targets).sum()
      entropy += entropies.sum()
      variance_of_surprise += ((rows * logs**2).sum(axis=1) - entropies**2).sum()
    assert_within_five_standard_errors(occurred, expected, variance)
    assert_within_five_standard_errors(surprise, entropy, variance_of_surprise)

  @parameterized.named_parameters(*DEFAULTS)
  def test_row_depends_on_the_tokens_up_to_it_only(self, config):
    dataset = config().make(48)
    tokens = dataset.window("validation", 0)
    rows = dataset.next_token_probabilities(tokens)
    for n in (1, 2, 7, 30):
      chex.assert_trees_all_equal(
        dataset.next_token_probabilities(tokens[:n]), rows[:n]
      )

  @parameterized.named_parameters(*DEFAULTS)
  def test_needs_the_start_token(self, config):
    dataset = config().make(48)
    for tokens in ([], [1], [1, 0]):
      with self.assertRaisesRegex(InputError, "start token, id 0"):
        dataset.next_token_probabilities(np.array(tokens, int))


class BiasedCoin(ToyLanguage):
  """Heads (1) three times out of four, tails (2) otherwise."""

  seed = 0
  tokenizer = WordTokenizer(("heads", "tails"))
  context_length = 3

  def sample(self, rng, length):
    return np.append(0, rng.choice((1, 2), length - 1, p=(0.75, 0.25)))

  def next_token_probabilities(self, tokens):
    return np.tile([0.0, 0.75, 0.25], (len(tokens), 1))


class FloorTest(chex.TestCase):
  def test_is_the_mean_surprise_of_the_targets(self):
    windows = np.array([[0, 1, 1, 2], [0, 2, 1, 1]])
    expected = -(4 * math.log(0.75) + 2 * math.log(0.25)) / 6
    assert_close(floor(BiasedCoin(), windows), expected)

  def test_tends_to_the_entropy(self):
    coin = BiasedCoin()
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    # The surprise is ln 3 more for tails: standard deviation ln(3) sqrt(3) / 4.
    standard_error = math.log(3) * math.sqrt(3) / 4 / math.sqrt(3 * 2000)
    measured = floor(coin, draw(coin, 2000, "validation"))
    self.assertAlmostEqual(measured, entropy, delta=5 * standard_error)
