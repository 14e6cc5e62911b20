"""A model whose layers are stacked tells all that the one with layers apart tells."""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest

from gpt2_flax import interpret
from gpt2_flax.layers.layer_stacking import stack_layers
from tests.interpret.test_edits import make_model, TOKENS, VECTOR
from tests.params import random_params

BATCH = {"inputs": TOKENS[:, :-1], "targets": TOKENS[:, 1:]}


@functools.cache
def both():
  apart, stacked = make_model(), make_model(scan_layers=True)
  params = random_params(apart, scale=0.5)
  return (apart, params), (stacked, stack_layers(params))


def attribution(model, params):
  _, run = interpret.trace(model, params, TOKENS)
  return interpret.logit_attribution(model, params, run)


def lens(model, params):
  _, run = interpret.trace(model, params, TOKENS)
  return interpret.logit_lens(model, params, run)


def edited(model, params):
  edits = [
    interpret.ablate_heads([[0, 1], [1, 0]]),
    interpret.steer(VECTOR, [0, 1]),
    interpret.make_edit("mlp_hidden", [0, 1], 0.5, 0.1),
    interpret.transform("query", jnp.square, mask=[[1, 0], [0, 1]]),
  ]
  edited_model, edited_params = interpret.edited(model, params, edits)
  return interpret.trace(model, params, TOKENS, edits), edited_model.apply(
    edited_params, TOKENS
  )


def last(logits_BTV):
  return logits_BTV[:, -1, 0].mean()


def path(model, params):
  _, source = interpret.trace(model, params, (TOKENS + 1) % 11)
  receivers = [[0, 0], [1, 0]]
  return interpret.path_patching(model, params, TOKENS, source, last, receivers)


MEASURES = (
  lambda *model: interpret.trace(*model, TOKENS),
  edited,
  lambda *model: interpret.head_ablation(*model, BATCH),
  lens,
  attribution,
  interpret.composition_scores,
)


class StackedTest(chex.TestCase):
  def test_to_the_bit(self):
    self.assert_alike(*MEASURES)

  @pytest.mark.slow
  def test_so_are_gradients_and_paths(self):
    self.assert_alike(lambda *model: interpret.head_gradient(*model, BATCH), path)

  def assert_alike(self, *measures):
    """All by one program for each model."""

    def measured(model, params):
      return jax.jit(lambda params: [f(model, params) for f in measures])(params)

    apart, stacked = (measured(*model) for model in both())
    chex.assert_trees_all_equal(stacked, apart)
    chex.assert_tree_all_finite(apart)
