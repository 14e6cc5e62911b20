"""The lesson on what is learned when: its measures by hand, its verdict on figures."""

import dataclasses
import json
from unittest import mock

from absl.testing import parameterized
import chex
import jax.numpy as jnp
import numpy as np

from gpt2_flax.interpret import Trace
from lessons import learned_when
from lessons.learned_when import STAIRS, Way
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


class MeasureTest(chex.TestCase):
  @parameterized.parameters(1, 2, 3)
  def test_ngrams_are_means_over_all_places_with_the_same_words_before(self, n):
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 3, (8, 6))
    exact = rng.dirichlet(np.ones(3), (8, 6))
    places: dict[tuple, list] = {}
    for i, t in np.ndindex(8, 6):
      context = tuple(inputs[i, max(0, t - n + 2) : t + 1]) if n > 1 else ()
      places.setdefault(context, []).append((i, t))
    found = learned_when.ngram_rows(inputs, exact, n, 5)
    self.assertEqual(found.shape, (5, 6, 3))
    for same in places.values():
      mean = np.mean([exact[at] for at in same], axis=0)
      for i, t in same:
        if i < 5:
          assert_close(found[i, t], mean)

  def test_likeness_of_attention(self):
    """Query 0 does not count; one that is equal, one half shared, one apart."""
    one = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0.5, 0.5, 0, 0], [1, 0, 0, 0]])
    other = np.array([[0.0, 0, 0, 1], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 1, 0, 0]])
    assert_close(learned_when.similarity(one[None], other[None]), (1 + 0.5 + 0) / 3)

  def test_a_head_is_halfway_when_it_stays_so(self):
    steps = [10, 20, 30, 40, 50]
    self.assertEqual(learned_when.halfway(steps, [0.4, 0.8, 0.6, 0.75, 1.0]), 40)
    self.assertEqual(learned_when.halfway(steps, [0.4, 0.69, 0.71, 0.75, 1.0]), 30)

  def test_what_a_slider_comes_to(self):
    def place(*p):
      return np.array([[p]])

    stairs = {"unigram": place(0.5, 0.5), "exact": place(0.9, 0.1)}
    between = stairs | {"bigram": place(0.7, 0.3)}
    self.assertBetween(learned_when.slider_distance(between, "bigram"), 0, 1e-4)
    beyond = stairs | {"bigram": place(0.2, 0.8)}
    kl = 0.2 * np.log(0.4) + 0.8 * np.log(1.6)  # to the unigrams
    assert_close(learned_when.slider_distance(beyond, "bigram"), kl)

  def test_looks_at_logarithms_of_probabilities_and_at_weights(self):
    weights = jnp.ones((1, 2, 1, 3, 3))

    def trace(model, params, tokens_BT, taps):
      self.assertEqual(list(taps), ["weights"])
      return jnp.log(jnp.array([[[2.0, 6.0]]])), Trace(weights=weights)

    with mock.patch.object(learned_when, "trace", trace):
      log_q, found = learned_when.look(object(), {}, np.zeros((1, 3), int))
    assert_close(jnp.exp(log_q), jnp.array([[[0.25, 0.75]]]))
    assert_close(found, weights)


V, PLACES = 6, 4
STEPS = [10, 20, 80, 110, 120, 600]


def stairs():
  """Distributions over 6 words at 4 places, each stair knowing more than those below.

  All words are equally likely; two are; one is, more and more.
  """
  rows = {}
  for name, likely in zip(
    (*STAIRS, "exact"), (1 / 6, 0.4, 0.6, 0.75, 0.9), strict=True
  ):
    row = np.full((1, PLACES, V), (1 - likely) / (V - 1))
    for place in range(PLACES):
      row[0, place, place] = likely
      if name == "bigram":
        row[0, place] = 0.05
        row[0, place, place : place + 2] = 0.4
    rows[name] = row
  return rows


def a_way(nearest=None, halfway=None):
  """Args: stair -> (step, distance); (layer, head) -> when it is halfway."""
  near = {
    "unigram": (20, 0.02),
    "bigram": (80, 0.002),
    "trigram": (110, 0.4),
    "4-gram": (120, 0.2),
    "exact": (600, 0.01),
  } | (nearest or {})
  distances = {
    stair: np.array([at[1] if step == at[0] else 2.0 for step in STEPS])
    for stair, at in near.items()
  }
  halves = np.array([[110, 110, 120], [120, 120, 120]])
  for head, step in (halfway or {}).items():
    halves[head] = step
  similarities = np.array(
    [np.where(step >= halves, 0.9, 0.3) for step in STEPS[:-1]] + [np.ones((2, 3))]
  )
  previous = np.array([np.full((2, 3), 0.001 * step) for step in STEPS])
  return Way(STEPS, distances, similarities, previous)


def judge(way, picture=False):
  with mock.patch.object(learned_when, "new_figure", figures(picture)):
    return learned_when.report(stairs(), [0, 1, 2], [a_way(), way, a_way()])


class VerdictTest(chex.TestCase):
  def test_holds(self):
    report = judge(a_way(), picture=True)
    self.assertEqual(held(report), [True] * 5)
    json.dumps([dataclasses.asdict(finding) for finding in report.findings])
    self.assertBetween(picture_size(report), 5_000, 250_000)
    rows = table(report, "The nearest")
    self.assertLen(rows, 15)
    row = rows[6]
    self.assertEqual((row["seed"], row["stair"]), (1, "bigram"))
    self.assertEqual((row["nearest at step"], row["distance then"]), (80, 0.002))
    kl = 0.8 * np.log(2.4) + 0.2 * np.log(0.3)  # of bigrams from unigrams
    assert_close(row["stair below"], kl)
    heads = table(report, "The heads")
    self.assertEqual(heads[3]["halfway at step"], "120 120 120")
    assert_close(heads[3]["previous-token score when nearest to bigrams"], 0.08)
    assert_close(heads[3]["at the end"], 0.6)
    self.assertIn(
      "half of its heads are halfway at step 110, ", report.findings[4].text
    )

  @parameterized.parameters(
    (0, {"nearest": {"4-gram": (80, 0.2)}}),
    (1, {"nearest": {"unigram": (20, 0.1)}}),
    (1, {"nearest": {"bigram": (80, 0.3)}}),
    (2, {"nearest": {"trigram": (110, 0.001)}}),
    (2, {"nearest": {"4-gram": (120, 0.001)}}),
    (3, {"halfway": {(0, 1): 80}}),
    (4, {"halfway": {(1, 0): 110, (1, 2): 110}}),
  )
  def test_does_not_hold(self, finding, given):
    self.assertEqual(held(judge(a_way(**given))), all_but(5, finding))


@dataclasses.dataclass(frozen=True)
class Step:
  """In place of parameters: when they are looked at."""

  number: int


class RunTest(chex.TestCase):
  def test_notes_what_is_seen_at_each_step(self):
    """Of a model that is on the first stairs and then exact, and of turning heads."""
    seen = {}

    def exact_rows(language, inputs):
      self.assertEqual(inputs.shape, (1032, 48))
      rows = np.full((*inputs.shape, V), 0.1)
      rows[np.arange(1032) % 2 == 0, :, 0] = 0.5
      rows[np.arange(1032) % 2 == 1, :, 1] = 0.5
      return rows

    def look(model, params, inputs):
      q = np.full((32, 48, V), 1 / 6) if params.number < 200 else exact_rows_of(inputs)
      weights = np.zeros((2, 4, 32, 48, 48))
      weights[..., 0 if params.number < 150 else 1] = 1
      return np.log(q), weights

    def exact_rows_of(inputs):
      return exact_rows(None, np.zeros((1032, 48)))[:32]

    def report(stairs, seeds, ways):
      seen.update(stairs=stairs, seeds=seeds, ways=ways)

    def outcome(config, seed):
      return Given(0.0, params=None, at_step=Step)

    with (
      mock.patch.object(learned_when, "exact_rows", exact_rows),
      mock.patch.object(learned_when, "look", look),
      mock.patch.object(learned_when, "report", report),
      mock.patch.object(learned_when, "train", train_giving(outcome)),
    ):
      learned_when.run(reduced=True)
    [way] = seen["ways"]
    self.assertEqual(list(seen["stairs"]), [*STAIRS, "exact"])
    self.assertEqual((way.steps[0], way.steps[-1], len(way.steps)), (10, 300, 30))
    self.assertEqual(way.nearest("exact")[0], 200)
    kl = np.log(6) + 0.5 * np.log(0.5) + 0.5 * np.log(0.1)
    assert_close(way.distances["exact"][0], kl)
    np.testing.assert_array_equal(way.halfway, np.full((2, 4), 150))
    self.assertEqual(way.previous.shape, (30, 2, 4))
