"""Composition scores, from [D, D] matrices in NumPy."""

import functools

from absl.testing import parameterized
import chex
from flax import linen as nn
import jax
import numpy as np

from gpt2_flax import GPT2, GPT2Config, InputError, interpret
from gpt2_flax.layers.layer_stacking import stack_layers
from tests.close import assert_close
from tests.interpret.by_hand import exact
from tests.params import shapes_of

L, H, D, K = 3, 2, 8, 4


@functools.cache
def model_and_params(**changes):
  values = dict(vocab_size=9, context_length=4, num_layers=L, num_heads=H, embed_dim=D)
  model = GPT2(GPT2Config(**(values | changes)))
  rng = np.random.default_rng(0)
  draw = lambda x: rng.normal(0.3, 1, x.shape).astype("f4")  # noqa: E731
  return model, jax.tree.map(draw, nn.unbox(shapes_of(model)))


def circuits():
  """What a head looks with and moves, [D, D] each, by layer and head, in float64."""
  centre = np.eye(D) - 1 / D
  params = exact(model_and_params()[1])
  looks, moves = {}, {}
  for layer, head in np.ndindex(L, H):
    block = params[f"blocks_{layer}"]
    heads, norm = block["attention"]["heads"], block["attention_norm"]
    read = centre @ np.diag(norm["scale"])
    query, key, value = (
      read @ heads[step]["kernel"][head] for step in ("query", "key", "value")
    )
    output = block["attention"]["output"]["kernel"][head * K : (head + 1) * K]
    looks[layer, head] = query @ key.T
    moves[layer, head] = value @ output @ centre
  return looks, moves


class HeadWeightsTest(chex.TestCase):
  def test_the_circuits(self):
    looks, moves = circuits()
    weights = interpret.head_weights(*model_and_params())
    chex.assert_shape(weights, [(L, H, D, K)] * 3 + [(L, H, K, D)])
    for at in np.ndindex(L, H):
      assert_close(weights.query[at] @ weights.key[at].T, looks[at])
      assert_close(weights.value[at] @ weights.output[at], moves[at])

  def test_of_stacked_layers(self):
    model, params = model_and_params()
    scanned = GPT2(GPT2Config(**{**vars(model.config), "scan_layers": True}))
    found = interpret.head_weights(scanned, stack_layers(params))
    chex.assert_trees_all_equal(found, interpret.head_weights(model, params))


class CompositionTest(chex.TestCase):
  @parameterized.parameters("query", "key", "value")
  def test_is_the_size_of_the_product(self, to):
    looks, moves = circuits()
    expected = np.zeros((L, H, L, H))
    for i, j, k, m in np.ndindex(L, H, L, H):
      if i >= k:
        continue  # not before it
      earlier = moves[i, j]
      later = {"query": looks[k, m], "key": looks[k, m].T, "value": moves[k, m]}[to]
      size = np.linalg.norm(earlier) * np.linalg.norm(later)
      expected[i, j, k, m] = np.linalg.norm(earlier @ later) / size
    found = interpret.composition_scores(*model_and_params(), to)
    assert_close(found, expected)

  def test_refuses(self):
    with self.assertRaisesRegex(InputError, "'output': allowed: key, query, value"):
      interpret.composition_scores(*model_and_params(), "output")
    rotary = model_and_params(positional_encoding="rotary")
    with self.assertRaisesRegex(InputError, "to is 'query': must be 'value' where"):
      interpret.composition_scores(*rotary, "query")
    interpret.composition_scores(*rotary, "value")
