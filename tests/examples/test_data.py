"""Datasets of one's own: what each asks, and that its oracle is exact."""

import pathlib

import chex
import numpy as np

from examples import brackets, modular_addition, regression
from examples.brackets import BracketsConfig
from examples.modular_addition import ModularAdditionConfig
from examples.regression import RegressionConfig
from gpt2_flax.datasets.dataset import floor
from gpt2_flax.errors import InputError
from gpt2_flax.training.experiment import parse
from tests.close import assert_close


class ModularAdditionTest(chex.TestCase):
  def test_every_pair_is_there_once_and_adds_up(self):
    dataset = ModularAdditionConfig(modulus=5, train_fraction=0.6, seed=1).make(7)
    self.assertEqual(dataset.num_windows("train"), 15)
    texts = []
    for split in ("train", "validation"):
      for i in range(dataset.num_windows(split)):
        window = dataset.window(split, i)
        texts.append(dataset.tokenizer.decode(window[window >= 0]))
    expected = [f"{a} + {b} = {(a + b) % 5}" for a in range(5) for b in range(5)]
    self.assertCountEqual(texts, expected)

  def test_only_the_answer_is_asked_for_and_it_is_certain(self):
    dataset = ModularAdditionConfig(modulus=5).make(7)
    windows = np.stack([dataset.window("validation", i) for i in range(7)])
    batch = dataset.batch(windows)
    asked = batch["targets"] >= 0
    np.testing.assert_array_equal(asked, np.arange(7)[None] == [[4]] * 7)
    for inputs, targets in zip(batch["inputs"], batch["targets"], strict=True):
      sum_of = [inputs[1], inputs[3], targets[4]]
      a, b, c = map(int, dataset.tokenizer.decode(sum_of).split())
      self.assertEqual(c, (a + b) % 5)
    self.assertEqual(floor(dataset, windows), 0.0)
    rows = dataset.next_token_probabilities(windows[0, :5])
    assert_close(rows.sum(-1), np.ones(5), 5)
    assert_close(rows[2, 1:6], np.full(5, 0.2), 1)

  def test_what_is_refused(self):
    with self.assertRaisesRegex(InputError, "data.modulus is 1: must be 2 to 1000"):
      ModularAdditionConfig(modulus=1)
    with self.assertRaisesRegex(InputError, "train_fraction is 1: must be between"):
      ModularAdditionConfig(train_fraction=1)
    with self.assertRaisesRegex(InputError, "context_length is 4: must be at least 5"):
      ModularAdditionConfig().make(4)


class BracketsTest(chex.TestCase):
  def test_all_are_closed_by_their_own_kind_in_turn(self):
    dataset = BracketsConfig(num_kinds=3, max_depth=4).make(200)
    deepest = 0
    for i in range(20):
      text = dataset.tokenizer.decode(dataset.window("train", i)).replace(" ", "")
      stack = []
      for bracket in text:
        if bracket in "([{":
          stack.append(bracket)
        else:
          self.assertIn(stack.pop() + bracket, ("()", "[]", "{}"))
        deepest = max(deepest, len(stack))
    self.assertEqual(deepest, 4)

  def test_the_oracle_by_hand(self):
    config = BracketsConfig(num_kinds=2, max_depth=2, open_probability=0.25)
    dataset = config.make(8)
    tokens = np.array(dataset.tokenizer.start("( [ ] )"))
    rows = dataset.next_token_probabilities(tokens)
    half, eighth = 0.5, 0.125  # columns: start ( [ ) ]
    expected = [
      [0, half, half, 0, 0],
      [0, eighth, eighth, 0.75, 0],
      [0, 0, 0, 0, 1],
      [0, eighth, eighth, 0.75, 0],
      [0, half, half, 0, 0],
    ]
    assert_close(rows, np.array(expected), 1)
    wrong = dataset.next_token_probabilities(np.array(dataset.tokenizer.start("( ] (")))
    np.testing.assert_array_equal(wrong[2:], 0)


class RegressionTest(chex.TestCase):
  def test_the_oracle_by_hand(self):
    """After x0 y1, the intercept is 0, 1 or 2 by Bayes' rule, and x0 says so again."""
    config = RegressionConfig(max_x=1, max_slope=1, max_intercept=3, noise=0.1)
    dataset = config.make(8)
    encode = dataset.tokenizer.encode
    tokens = np.array(dataset.tokenizer.start("x0 y1 x0"))
    rows = dataset.next_token_probabilities(tokens)
    assert_close(rows[0, encode("x-1 x0 x1")], np.full(3, 1 / 3), 2)
    posterior = {0: 0.1, 1: 0.8, 2: 0.1}  # of the intercept; the slope is free
    noise = {-1: 0.1, 0: 0.8, 1: 0.1}
    expected = {y: 0.0 for y in range(-1, 4)}
    for intercept, p in posterior.items():
      for off, q in noise.items():
        expected[intercept + off] += p * q
    for y, probability in expected.items():
      assert_close(rows[3, encode(f"y{y}")], np.array([probability]), 16)
    far = dataset.next_token_probabilities(
      np.array(dataset.tokenizer.start("x0 y1 y1"))
    )
    np.testing.assert_array_equal(far[3:], 0)


class ConfigsTest(chex.TestCase):
  def test_say_where_they_are_from(self):
    for module in (brackets, modular_addition, regression):
      experiment, dataset = parse(module.get_config())
      self.assertEqual(experiment.model.vocab_size, dataset.tokenizer.vocab_size)
      name = type(experiment.data).__name__
      self.assertEqual(experiment.own, {"data": f"{module.__name__}:{name}"})
      path = pathlib.Path(module.__file__)
      self.assertEqual(experiment.data.name, path.stem)
