"""The lesson on the limit, without its trainings; its dataset against brute force."""

import itertools
import math
from unittest import mock

from absl.testing import parameterized
import chex
import numpy as np

from gpt2_flax import GPT2Config
from gpt2_flax.datasets.markov import MarkovConfig
from gpt2_flax.datasets.pipeline import validation_windows
from gpt2_flax.errors import InputError
from lessons import limit
from lessons.limit import Comparison, InContextConfig
from lessons.training import Trained
from tests.close import assert_close, walk
from tests.lessons.stubs import (
  all_but,
  ByHeart,
  figures,
  Given,
  held,
  picture_size,
  table,
  train_giving,
)


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
    # Two logarithms of probabilities have 2 size (1 + size) terms each, no larger than
    # this one: with two roundings, and one of the sum.
    largest = math.lgamma(size * alpha + 5)
    roundings = walk(2 * 2 * size * (1 + size) * 3)
    for symbols in itertools.product(range(size), repeat=5):
      rows = dataset.next_token_probabilities(np.append(0, np.add(symbols, 1)))
      for n in range(6):
        before = log_probability(symbols[:n], size, alpha)
        expected = [0.0] + [
          math.exp(log_probability((*symbols[:n], x), size, alpha) - before)
          for x in range(size)
        ]
        assert_close(rows[n], np.array(expected), roundings, scale=largest)

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


class MeasureTest(chex.TestCase):
  def test_divergence_by_hand(self):
    p = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    q = np.array([[0.25, 0.25, 0.5], [0.5, 0.5, 0.0]])
    with np.errstate(divide="ignore"):
      kl = limit.divergence(p, np.log(q))
    assert_close(kl, np.log([2.0, 2.0]))

  @parameterized.parameters(0.0, 0.3)
  def test_a_model_that_mixes_the_exact_predictor_with_guessing(self, share):
    language = InContextConfig(num_symbols=3, seed=4).make(6)
    batch = language.batch(validation_windows(language, 5))
    p = np.stack([language.next_token_probabilities(x) for x in batch["inputs"]])
    q = (1 - share) * p + share * np.array([0.0, 1 / 3, 1 / 3, 1 / 3])
    with np.errstate(divide="ignore"):
      params = {"texts": batch["inputs"], "logits": np.log(q)}
    model = ByHeart(GPT2Config(4, 6, 1, 1, 8))
    result = limit.compare(Trained(model, params, 0.0, 0.0, []), language, 5)
    for n, i in np.ndindex(5, 6):
      exact, said = p[n, i, 1:], q[n, i, 1:]
      came = batch["targets"][n, i] - 1
      expected = {
        "kl": sum(exact * np.log(exact / said)),
        "uniform_kl": math.log(3) + sum(exact * np.log(exact)),
        "gap": math.log(exact[came] / said[came]),
      }
      for name, value in expected.items():
        found = getattr(result, name)[n, i]  # of logarithms of about 1
        assert_close(found, value, scale=max(1.0, abs(value)), dtype=np.float32)

  def test_groups_of_eight_windows(self):
    values = np.arange(16)[:, None] + np.array([[0.0, 0.5]])
    assert_close(limit.by_group(values), np.array([3.75, 11.75]))


class VerdictTest(chex.TestCase):
  """On the figures of the page, and on some that one finding does not bear."""

  def run_on(self, kl=None, least=1e-5, lucky=-0.013, reduced=False, picture=False):
    """Args: {(process, seed): mean KL}, the least KL, the lowest gap of a group."""
    page = {MarkovConfig: (0.005, 0.82), InContextConfig: (0.002, 0.28)}

    def compare(trained, language, num_windows):
      kind, seed = trained.params
      mean, nothing = page[kind]
      mean = (kl or {}).get((kind, seed), mean)
      kls = np.full((32, limit.LENGTH), mean)
      kls[:, -8:] *= 1.5
      kls *= mean / kls.mean()
      kls[0, 0] = least
      gaps = np.full_like(kls, 0.006)
      gaps[0] = -0.03  # luck with one window, as there is in any group
      gaps[8:16] += lucky - 0.006
      return Comparison(kls, np.full_like(kls, nothing), gaps)

    def outcome(config, seed):
      return Given(loss=0.0, params=(type(config.data), seed))

    with (
      mock.patch.object(limit, "new_figure", figures(picture)),
      mock.patch.object(limit, "compare", compare),
      mock.patch.object(limit, "train", train_giving(outcome)),
    ):
      return limit.run(reduced)

  def test_holds(self):
    report = self.run_on(picture=True)
    self.assertEqual(held(report), [True] * 3)
    self.assertBetween(picture_size(report), 5_000, 150_000)
    rows = table(report, "Distance")
    self.assertEqual([row["seed"] for row in rows], [0, 1, 2, 0, 1, 2])
    self.assertEqual(
      [row["process"] for row in rows],
      ["Markov chain"] * 3 + ["a chain a sequence"] * 3,
    )
    expected = {
      "KL": 0.005,
      "KL, last 8 positions": 0.005 * 1.5 * 32 / 36,
      "KL of knowing nothing": 0.82,
      "loss - floor": (23 * 0.006 - 8 * 0.013 - 0.03) / 32,
    }
    for column, value in expected.items():
      # one of 1,024 values is `least`
      self.assertAlmostEqual(rows[1][column], value, delta=0.01 / 1024)
    self.assertEqual(rows[1]["below the floor, 8 windows"], "25%")

  def test_holds_at_its_reduced_size(self):
    self.assertEqual(held(self.run_on(reduced=True)), [True] * 3)

  @parameterized.parameters(
    (0, {"kl": {(MarkovConfig, 2): 0.1}}),
    (1, {"kl": {(InContextConfig, 1): 0.035}}),
    (2, {"lucky": 0.004}),
    (2, {"least": -1e-5}),
  )
  def test_does_not_hold(self, finding, figures):
    self.assertEqual(held(self.run_on(**figures)), all_but(3, finding))
