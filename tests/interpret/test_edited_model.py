"""A model and its edits as one, which is called as a model is."""

import copy

from absl.testing import parameterized
import chex
import numpy as np

from gpt2_flax import generation, InputError, interpret
from gpt2_flax.interpret import ablate_heads, steer
from tests.close import assert_close
from tests.interpret.test_edits import (
  H,
  L,
  logits_with,
  make_model,
  model_and_params,
  scale_output,
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
    logits = edited_model.apply(edited_params, TOKENS)
    chex.assert_trees_all_equal(logits, logits_with(*edits))
    hidden = edited_model.apply(edited_params, TOKENS, method="hidden")
    again = edited_model.apply(edited_params, hidden, method="unembed")
    chex.assert_trees_all_equal(again, logits)
    self.assertEqual(edited_model.config, model.config)

  def test_editing_twice_is_editing_with_both(self):
    first, second = ablate_heads([[1, 0], [0, 0]]), steer(VECTOR, [0, 1])
    twice = interpret.edited(*interpret.edited(*model_and_params(), [first]), [second])
    logits, _ = interpret.trace(*twice, TOKENS, [], taps=())
    chex.assert_trees_all_equal(logits, logits_with(first, second))

  def test_new_edits_come_after_those_it_has(self):
    add = steer(VECTOR, [1, 0])
    double = interpret.make_edit("residual_before", [1, 0], 2.0, 0.0)
    before = unedited()[1].residual_before[0]
    for first, then, expected in (
      (add, double, 2 * (before + VECTOR[None, None])),
      (double, add, 2 * before + VECTOR[None, None]),
    ):
      once = interpret.edited(*model_and_params(), [first])
      twice = interpret.edited(*once, [then])
      for logits, trace in (
        interpret.trace(*twice, TOKENS),
        interpret.trace(*once, TOKENS, [then]),
      ):
        assert_close(trace.residual_before[0], expected)
        assert_close(logits, logits_with(first, then))

  @parameterized.parameters(None, "__call__", "hidden", "extend")
  def test_an_edit_that_hits_nothing_is_refused(self, method):
    model = make_model(feed_forward=False)
    edit = steer(VECTOR, [1, 0], "mlp_output")
    model, params = interpret.edited(model, random_params(model, scale=0.5), [edit])
    with self.assertRaisesRegex(InputError, "edit 'mlp_output' hit nothing"):
      model.apply(params, TOKENS, method=method)
    model.apply(params, np.ones((1, 2, 8), "f4"), method="unembed")  # a part of a pass

  def test_generation(self):
    model, params = model_and_params()
    plain = self.generate(model, params)
    scales = np.array([[0, 1], [1, 0]])
    changed = copy.deepcopy(params)
    scale_output(scales)(changed["params"])
    changed["params"]["blocks_1"]["attention"]["output"]["bias"] += VECTOR
    expected = self.generate(model, changed)
    edits = [
      interpret.scale_heads(scales),
      steer(VECTOR, [False, True], "residual_between"),
    ]
    self.assertEqual(self.generate(*interpret.edited(model, params, edits)), expected)
    self.assertNotEqual(plain, expected)
    # Neither jit's cache of the edited nor of the plain model knows the other.
    self.assertEqual(self.generate(model, params), plain)
    compiled = generation.decode._cache_size()
    edits = [
      interpret.scale_heads(np.ones((L, H), int)),
      steer(0 * VECTOR, [False, True], "residual_between"),
    ]
    self.assertEqual(self.generate(*interpret.edited(model, params, edits)), plain)
    self.assertEqual(generation.decode._cache_size(), compiled)

  def test_a_pattern_does_not_fit_generation(self):
    edit = interpret.replace_pattern(np.eye(8), [[1, 0], [0, 0]])
    with self.assertRaisesRegex(
      InputError, "edit of 'weights': axis S is 8: must be 1 or 16 in this call.*slots"
    ):
      self.generate(*interpret.edited(*model_and_params(), [edit]))
