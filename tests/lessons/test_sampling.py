"""The lesson on sampling: its rules against the generator's, its verdict on figures."""

import dataclasses
import json
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax import GPT2Config
from gpt2_flax.datasets import GrammarConfig
from gpt2_flax.generation import sample_token, Sampling
from lessons import sampling
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


class MeasureTest(chex.TestCase):
  @parameterized.parameters(
    {"temperature": 0.4},
    {"temperature": 1.7},
    {"top_k": 1},
    {"top_k": 3},
    {"top_p": 0.5},
    {"top_p": 0.9},
    {"min_p": 0.3},
    {},
  )
  def test_draws_from_what_the_generator_draws_from(self, **rule):
    logits = jnp.asarray(np.random.default_rng(1).normal(0, 2, (5, 8)), jnp.float32)
    with mock.patch.object(jax.random, "categorical") as draw:
      sample_token(jax.random.key(0), logits, Sampling(**rule))
    [_, kept], _ = draw.call_args
    found = sampling.after_rule(logits, Sampling(**rule))
    assert_close(found, jax.nn.softmax(kept), dtype=np.float32)

  def test_rules_by_hand(self):
    logits = np.log([0.5, 0.25, 0.15, 0.1])
    for rule, expected in (
      ({"temperature": 0.5}, np.array([0.25, 0.0625, 0.0225, 0.01]) / 0.345),
      ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
      ({"top_p": 0.8}, np.array([0.5, 0.25, 0.15, 0]) / 0.9),
      ({"min_p": 0.4}, [2 / 3, 1 / 3, 0, 0]),
    ):
      found = sampling.after_rule(logits, Sampling(**rule))
      assert_close(found, np.array(expected))

  def test_entropy_by_hand(self):
    found = sampling.entropy(np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))
    assert_close(found, np.array([np.log(2), 0.0]))

  def test_the_dial_is_what_is_not_as_the_model_says(self):
    self.assertEqual(sampling.dial(Sampling(top_p=0.9)), 0.9)
    self.assertEqual(sampling.dial(Sampling(temperature=0.5)), 0.5)
    self.assertEqual(sampling.dial(Sampling()), 1.0)

  def test_counts_both_kinds_of_mistakes(self):
    language = GrammarConfig().make(4)
    text = "the cats sleep"
    wrong = "the cats sleeps"
    encode = language.tokenizer.encode

    def generate(model, params, prompts, *, num_tokens, key, sampling):
      self.assertEqual((num_tokens, sampling), (3, rule))
      self.assertEqual(set(map(tuple, prompts)), {(0,)})
      return [encode(wrong if i % 4 == 0 else text) for i in range(len(prompts))]

    places = {
      "exact": np.array([[[0.5, 0.3, 0.2, 0]] * 4, [[0, 0, 0.5, 0.5]] * 4]),
      "logits": np.log(np.full((2, 4, 4), [0.4, 0.3, 0.2, 0.1])),
      "targets": np.array([[0, 1, 2, 1], [2, 2, 2, 3]]),
    }
    rule = Sampling(top_k=3)  # q is [4, 3, 2, 0] / 9
    trained = Trained(GPT2Config(4, 4, 1, 1, 8), {}, 0.0, 0.0, [])
    with mock.patch.object(sampling, "generate", generate):
      found = sampling.look(language, trained, rule, places)
    q = np.array([4, 3, 2]) / 9
    expected = {
      "impossible": (0 + 7 / 9) / 2,
      "cut off": (0 + 0.5) / 2,
      "entropy": -(q * np.log(q)).sum(),
      "right texts": 0.75,
      "texts it can write": 0.5,
    }
    assert_close(found, expected)


# of each rule: the share of right texts, what is cut off, the texts that it can write
PAGE = {
  "temperature": [(0.56, 0, 1), (0.84, 0, 1), (0.90, 0, 1), (0.91, 0, 1), (0.83, 0, 1)],
  "top-k": [(0.89, 0.01, 0.7), (0.93, 0.1, 0), (0.61, 0.5, 0)],
  "top-p": [(0.94, 5e-5, 1), (0.957, 0.03, 0.3), (0.95, 0.2, 0), (0.88, 0.4, 0)],
  "min-p": [(0.94, 1e-5, 1), (0.95, 0.01, 0.7), (0.94, 0.1, 0), (0.87, 0.2, 0)],
}
ENTROPIES = {
  "temperature": (2.1, 1.98, 1.9, 1.7, 1.4),
  "top-k": (1.95, 1.8, 0.9),
  "top-p": (1.96, 1.9, 1.6, 1.1),
  "min-p": (1.96, 1.94, 1.8, 1.3),
}


def looked(changed, rule):
  """What `look` is to give: of the page, or of what is changed."""
  [(family, i)] = [
    (family, rules.index(rule))
    for family, rules in sampling.RULES.items()
    if rule in rules
  ]
  right, cut_off, writes = (changed or {}).get((family, i), PAGE[family][i])
  return {
    "impossible": 0.001,
    "cut off": cut_off,
    "entropy": ENTROPIES[family][i],
    "right texts": right,
    "texts it can write": writes,
  }


def judge(changed=None, full=1.97):
  """The verdict on figures like the page's, and on given ones."""
  means = [
    {"rule": family, "dial": sampling.dial(rule), **looked(changed, rule)}
    for family, rules in sampling.RULES.items()
    for rule in rules
  ]
  with mock.patch.object(sampling, "new_figure", figures(False)):
    return sampling.report(means, full)


class Flat:
  """In place of a model: each logit is its parameter."""

  def __init__(self, config):
    self.config = config

  def apply(self, params, tokens_BT):
    return jnp.full((*tokens_BT.shape, 70), params, jnp.float32)


class VerdictTest(chex.TestCase):
  def test_holds(self):
    def look(language, trained, rule, places):
      logits = np.full((*places["targets"].shape, 70), trained.params, np.float32)
      np.testing.assert_array_equal(places["logits"], logits)
      return looked(None, rule) | {"impossible": 0.001 * (1 + trained.params)}

    def outcome(config, seed):
      return Given(0.0, params=float(seed))

    windows = np.zeros((2, 49), int)
    with (
      mock.patch.object(sampling, "train", train_giving(outcome, Flat)),
      mock.patch.object(sampling, "look", look),
      mock.patch.object(sampling, "entropy", return_value=np.array(1.97)),
      mock.patch.object(sampling, "validation_windows", return_value=windows),
    ):
      report = sampling.run()
    self.assertEqual(held(report), [True] * 5)
    json.dumps([dataclasses.asdict(finding) for finding in report.findings])
    self.assertBetween(picture_size(report), 5_000, 150_000)
    rows = table(report, "Shares")
    self.assertEqual((rows[5]["rule"], rows[5]["dial"]), ("top-k", 20))
    self.assertEqual((rows[1]["rule"], rows[1]["dial"]), ("temperature", 1.0))
    assert_close(rows[5]["impossible"], 0.002)  # the mean of three seeds
    self.assertIn("95.7%, by top-p 0.95, under which 30%", report.findings[2].text)

  @parameterized.parameters(
    (0, {"full": 2.05}),
    (1, {"changed": {("min-p", 0): (0.94, 0.003, 1)}}),
    (2, {"changed": {("top-p", 1): (0.995, 0.03, 0.3)}}),
    (2, {"changed": {("top-p", 1): (0.957, 0.03, 0.95)}}),
    (3, {"changed": {("top-k", 2): (0.94, 0.5, 0)}}),
    (4, {"changed": {("temperature", 3): (0.945, 0, 1)}}),
  )
  def test_does_not_hold(self, finding, given):
    self.assertEqual(held(judge(**given)), all_but(5, finding))

  def test_a_light_cut_must_take_a_third_of_the_mistakes(self):
    few = {("top-p", 0): (0.89, 5e-5, 1), ("temperature", 3): (0.85, 0, 1)}
    few |= {("temperature", 2): (0.85, 0, 1), ("top-p", 1): (0.92, 0.03, 0.3)}
    few |= {("top-p", 2): (0.92, 0.2, 0), ("min-p", 1): (0.93, 0.01, 0.7)}
    report = judge(few | {("min-p", 0): (0.89, 1e-5, 1)})
    self.assertEqual(held(report)[1], False)

  def test_rules_are_all_tried(self):
    self.assertEqual(
      {family: len(rules) for family, rules in sampling.RULES.items()},
      {family: len(rows) for family, rows in PAGE.items()},
    )
