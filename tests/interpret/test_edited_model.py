"""A model and its edits as one, which is called as a model is."""

import copy

from absl.testing import parameterized
import chex
import jax
import numpy as np

from gpt2_flax import generation, InputError, interpret
from gpt2_flax.interpret import ablate_heads, steer
from tests.close import assert_close
from tests.interpret.test_edits import (
  K,
  logits_with,
  make_model,
  model_and_params,
  TOKENS,
  unedited,
  VECTOR,
)
from tests.params import random_params

GREEDY = generation.Sampling(temperature=0)


class EditedModelTest(chex.TestCase):
  PROMPTS = ((1, 2, 3), (4, 5, 6, 7, 8))

  def generate(self, model, params):
    return generation.generate(
      model, params, self.PROMPTS, num_tokens=8, sampling=GREEDY
    )

  def test_is_called_as_a_model_is(self):
    model, params = model_and_params()
    edits = [ablate_heads([[1, 0], [0, 1]])]
    edited_model, edited_params = interpret.edited(model, params, edits)

    @jax.jit
    def run(params):
      logits = edited_model.apply(params, TOKENS)
      hidden = edited_model.apply(params, TOKENS, method="hidden")
      return logits, edited_model.apply(params, hidden, method="unembed")

    logits, again = run(edited_params)
    assert_close(logits, logits_with(*edits))
    chex.assert_trees_all_equal(again, logits)
    self.assertEqual(edited_model.config, model.config)

  def test_editing_twice_is_editing_with_both(self):
    first, second = ablate_heads([[1, 0], [0, 0]]), steer(VECTOR, [0, 1])
    twice = interpret.edited(*interpret.edited(*model_and_params(), [first]), [second])
    logits, _ = jax.jit(lambda: interpret.trace(*twice, TOKENS, [], taps=()))()
    assert_close(logits, logits_with(first, second))

  def test_new_edits_come_after_those_it_has(self):
    add = steer(VECTOR, [1, 0])
    double = interpret.make_edit("residual_before", [1, 0], 2.0, 0 * VECTOR)
    before = unedited()[1].residual_before[0]
    model, params = model_and_params()

    @jax.jit
    def run(first, then):
      once = interpret.edited(model, params, [first])
      twice = interpret.edited(*once, [then])
      taps = ["residual_before"]
      return (
        interpret.trace(*twice, TOKENS, taps=taps)[1].residual_before[0],
        interpret.trace(*once, TOKENS, [then], taps)[1].residual_before[0],
      )

    for first, then, expected in (
      (add, double, 2 * (before + VECTOR)),
      (double, add, 2 * before + VECTOR),
    ):
      for found in run(first, then):
        assert_close(found, expected)

  @parameterized.parameters(None, "__call__", "hidden", "extend")
  def test_an_edit_that_hits_nothing_is_refused(self, method):
    model = make_model(feed_forward=False)
    edit = steer(VECTOR, [1, 0], "mlp_output")
    model, params = interpret.edited(model, random_params(model, scale=0.5), [edit])
    with self.assertRaisesRegex(InputError, "edit 'mlp_output' hit nothing"):
      jax.eval_shape(lambda: model.apply(params, TOKENS, method=method))
    hidden = np.ones((1, 2, 8), "f4")  # to unembed it is a part of a pass
    jax.eval_shape(lambda: model.apply(params, hidden, method="unembed"))

  def test_generation(self):
    model = make_model(num_layers=1)
    params = random_params(model, scale=0.5)
    plain = self.generate(model, params)
    changed = copy.deepcopy(params)
    output = changed["params"]["blocks_0"]["attention"]["output"]
    output["kernel"][:K] = 0
    output["bias"] += VECTOR
    expected = self.generate(model, changed)

    def edits(scales, vector):
      return [
        interpret.scale_heads(scales),
        steer(vector, [True], "residual_between"),
      ]

    edited = interpret.edited(model, params, edits(np.array([[0, 1]]), VECTOR))
    self.assertEqual(self.generate(*edited), expected)
    self.assertNotEqual(plain, expected)
    # Neither jit's cache of the edited nor of the plain model knows the other.
    self.assertEqual(self.generate(model, params), plain)
    compiled = generation.decode._cache_size()
    edited = interpret.edited(model, params, edits(np.array([[1, 1]]), 0 * VECTOR))
    self.assertEqual(self.generate(*edited), plain)
    self.assertEqual(generation.decode._cache_size(), compiled)

  def test_a_pattern_does_not_fit_generation(self):
    model = make_model(num_layers=1)
    edit = interpret.replace_pattern(np.eye(8), [[1, 0]])
    edited = interpret.edited(model, random_params(model, scale=0.5), [edit])
    with self.assertRaisesRegex(
      InputError, "edit of 'weights': axis S is 8: must be 1 or 16 in this call.*slots"
    ):
      self.generate(*edited)
