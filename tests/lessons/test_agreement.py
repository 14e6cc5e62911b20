"""The lesson on agreement, without its trainings: phrases, measurement, verdict."""

import types
from unittest import mock

from absl.testing import parameterized
import chex
import jax.numpy as jnp
import numpy as np

from gpt2_flax.datasets.english import NOUNS
from gpt2_flax.datasets.grammar import GrammarConfig
from gpt2_flax.interpret import Trace
from lessons import agreement
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

# Of two layers with two heads each. Distance -> weight on the subject:
LOOKS = {
  0: [[0.9, 0.1], [0.2, 0.1]],
  4: [[0.1, 0.2], [0.8, 0.3]],
  7: [[0.1, 0.2], [0.6, 0.3]],
  8: [[0.1, 0.2], [0.4, 0.9]],
}
COSTS = np.array([[0.05, 0.3], [0.1, 0.02]])  # of a head's absence


class PhrasesTest(chex.TestCase):
  def test_the_right_number_is_the_only_one_possible(self):
    language = GrammarConfig().make(48)
    for distance in agreement.PHRASES:
      for i, tokens in enumerate(agreement.phrases(language, distance, 10)):
        words = language.tokenizer.decode(tokens.tolist()).split()
        many = i % 2 == 1
        self.assertEqual(words[1] in NOUNS["they"], many)
        self.assertLen(words, 2 + distance)
        last = language.next_token_probabilities(tokens)[-1]
        possible = {language.tokenizer.token(j) for j in np.flatnonzero(last)}
        wrong, right = agreement.PLURAL, agreement.SINGULAR
        if many:
          wrong, right = right, wrong
        self.assertFalse(possible.intersection(wrong), words)
        self.assertContainsSubset(right, possible)

  def test_all_nouns_between_have_the_other_number(self):
    rng = np.random.default_rng(0)
    for distance in (4, 7, 8):
      for many in (False, True):
        words = agreement.phrase(rng, distance, many).split()[2:]
        nouns = [w for w in words if any(w in kind for kind in NOUNS.values())]
        self.assertNotEmpty(nouns)
        for noun in nouns:
          self.assertEqual(noun in NOUNS["they"], not many)


def ablation(heads_LH, value):
  return heads_LH, value


class RightShareTest(chex.TestCase):
  def test_of_the_verbs_that_number_which_the_index_says(self):
    """Four texts over five words: one, two singular verbs, two plural verbs."""
    last = np.array(
      [
        [0.2, 0.5, 0.1, 0.1, 0.1],  # singular: 0.6 of 0.8
        [0.5, 0.1, 0.1, 0.2, 0.1],  # plural: 0.3 of 0.5
        [0.0, 0.3, 0.0, 0.2, 0.5],  # singular: 0.3 of 1
        [0.9, 0.0, 0.0, 0.1, 0.0],  # plural: 0.1 of 0.1
      ]
    )
    earlier = np.full_like(last, 0.2)

    def trace(model, params, tokens_BT, edits, taps):
      [(heads_LH, value)] = edits
      twice = jnp.where(heads_LH.any(), value, 1.0) * jnp.array([0, 0, 0, 1.0, 1.0])
      probabilities = jnp.stack([earlier, last], axis=1)
      return jnp.log(probabilities) + jnp.log(jnp.maximum(twice, 1.0))[None, None], None

    masks = np.zeros((2, 1, 2), bool)
    masks[1, 0, 1] = True  # then plural verbs become twice as likely
    with (
      mock.patch.object(agreement, "trace", trace),
      mock.patch.object(agreement, "ablate_heads", ablation),
    ):
      shares = agreement.right_share(
        object(), {}, np.zeros((4, 2), int), np.array([[1, 2], [3, 4]]), 2.0, masks
      )
    before = (0.6 / 0.8 + 0.3 / 0.5 + 0.3 / 1.0 + 1.0) / 4
    after = (0.6 / 1.0 + 0.6 / 0.8 + 0.3 / 1.7 + 1.0) / 4
    assert_close(shares, np.array([before, after]))


class DissectTest(chex.TestCase):
  def trace(self, model, params, tokens_BT, taps):
    num, length = tokens_BT.shape
    if list(taps) == ["head_output"]:  # [L, H, B, T, K], of the validation's texts
      mean_LHK = jnp.arange(12.0).reshape(2, 2, 1, 1, 3)
      around = jnp.linspace(-1, 1, num * length).reshape(1, 1, num, length, 1)
      return None, Trace(head_output=mean_LHK + around)
    looks = np.array(LOOKS[length - 3])[..., None]
    of_text = np.linspace(0, 2, num) if num > 1 else np.ones(1)
    weights_LHBTS = np.zeros((2, 2, num, length, length), "f4")
    weights_LHBTS[:, 1, :, :-1, agreement.SUBJECT] = 1.0  # no one predicts a verb here
    weights_LHBTS[:, :, :, -1, agreement.SUBJECT] = looks * of_text
    return None, Trace(**{taps[0]: jnp.asarray(weights_LHBTS)})

  def right_share(self, model, params, tokens_BT, verbs_2N, value, masks_MLH):
    self.assertEqual(tokens_BT.shape[0], 6)
    words = [self.language.tokenizer.decode(list(ids)).split() for ids in verbs_2N]
    self.assertEqual(
      [w[0] for w in words], [agreement.SINGULAR[0], agreement.PLURAL[0]]
    )
    self.assertEqual(len(words[0]), len(agreement.SINGULAR))
    assert_close(value.ravel(), np.arange(12.0))
    return 1 - (masks_MLH * COSTS).sum((1, 2)) * (1 + (tokens_BT.shape[1] - 3) / 8)

  def test_one_head_looks_and_heads_go(self):
    self.language = GrammarConfig().make(24)
    model = types.SimpleNamespace(
      config=types.SimpleNamespace(num_layers=2, num_heads=2)
    )
    with (
      mock.patch.object(agreement, "trace", self.trace),
      mock.patch.object(agreement, "right_share", self.right_share),
    ):
      out = agreement.dissect(Trained(model, {}, 0.0, 0.0, []), self.language, num=6)
    self.assertEqual(tuple(out["looker"]), (1, 0))  # across clauses, not next to it
    self.assertEqual(list(out["by distance"]), [0, 4, 7, 8])
    for distance, expected in ((0, 0.2), (4, 0.8), (7, 0.6), (8, 0.4)):
      assert_close(out["by distance"][distance], expected)
    # whole, without (1, 0), without (1, 1), without both, without (0, 1)
    of_each = 1 - np.outer([1, 1.5, 1.875, 2], [0, 0.1, 0.02, 0.12, 0.3])
    assert_close(out["shares"], of_each, dtype=np.float32)
    tokens, weights = out["example"]
    self.assertLen(tokens, 10)
    chex.assert_shape(weights, (2, 2, 1, 10, 10))


class VerdictTest(chex.TestCase):
  """On figures like the page's, and on some that one finding does not bear."""

  def run_on(self, shares=None, looks=None, reduced=False, picture=False):
    """Args: {(seed, distance, ablation): share} and {(seed, distance): weight}."""
    page = {
      0: (0.998, 0.99, 0.99, 0.98, 0.99),
      4: (0.996, 0.94, 0.99, 0.75, 0.85),
      7: (0.997, 0.95, 0.99, 0.80, 0.75),
      8: (0.95, 0.75, 0.97, 0.70, 0.65),
    }

    def dissect(trained, language, num):
      seed = trained.params
      of = np.array([page[distance] for distance in agreement.PHRASES])
      for (of_seed, distance, ablation), share in (shares or {}).items():
        if of_seed == seed:
          row = list(agreement.PHRASES).index(distance)
          of[row, agreement.ABLATIONS.index(ablation)] = share
      look = {0: 0.001, 4: 0.9, 7: 0.88, 8: 0.54}
      look |= {d: x for (s, d), x in (looks or {}).items() if s == seed}
      tokens = agreement.phrases(language, 7, num)[1]
      weights = np.full((2, 4, 1, len(tokens), len(tokens)), 0.1)
      return {
        "looker": (1, seed),
        "example": (tokens, weights),
        "by distance": look,
        "shares": of,
      }

    with (
      mock.patch.object(agreement, "new_figure", figures(picture)),
      mock.patch.object(agreement, "dissect", dissect),
      mock.patch.object(
        agreement, "train", train_giving(lambda config, seed: Given(0.0, params=seed))
      ),
    ):
      return agreement.run(reduced)

  def test_holds(self):
    report = self.run_on(picture=True)
    self.assertEqual(held(report), [True] * 5)
    self.assertBetween(picture_size(report), 5_000, 150_000)
    rows = table(report, "The right")
    self.assertLen(rows, 12)
    self.assertEqual(
      rows[6],
      {
        "seed": 1,
        "words between": 7,
        "looker": "layer 1 head 1",
        "its weight on the subject": 0.88,
        "whole": 0.997,
        "without the looker": 0.95,
        "the looker alone": 0.99,
        "without its layer": 0.8,
        "without the worst": 0.75,
      },
    )

  def test_holds_at_its_reduced_size(self):
    self.assertEqual(held(self.run_on(reduced=True)), [True] * 5)

  @parameterized.parameters(
    (0, {(1, 4, "whole"): 0.94}, {}),
    (0, {(2, 7, "whole"): 0.94}, {}),
    (1, {}, {(2, 7): 0.7}),
    (1, {}, {(0, 4): 0.7}),
    (2, {(0, 8, "the looker alone"): 0.88}, {}),
    (2, {(1, 0, "the looker alone"): 0.88}, {}),
    (3, {(2, 4, "without the worst"): 0.55}, {}),
    (3, {(0, 7, "without the worst"): 0.55}, {}),
    (4, {(seed, 8, "without the looker"): 0.96 for seed in range(3)}, {}),
  )
  def test_does_not_hold(self, finding, shares, looks):
    self.assertEqual(held(self.run_on(shares, looks)), all_but(5, finding))
