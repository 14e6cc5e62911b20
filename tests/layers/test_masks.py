"""Documents that share a window are as each is alone: in logits, loss and gradients."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax.layers.layer_stacking import stack_layers
from gpt2_flax.layers.masks import apart
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.training.loss import summed_loss
from gpt2_flax.transformer import GPT2
from tests.close import assert_close, ROUNDINGS, sizes
from tests.params import random_params
from tests.reference import reference_logits

T, V = 12, 11
LENGTHS = ((5, 1, 4, 2), (12,))  # of the documents in each row
# Their numbers need not count up by one.
DOCUMENTS = np.array([np.repeat([0, 3, 4, 9], LENGTHS[0]), np.full(T, 7)], np.int32)


def packed():
  """Tokens, targets, and where each document lies."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, V, (2, T)).astype(np.int32)
  targets = rng.integers(-1, V, (2, T)).astype(np.int32)
  places = []
  for row, lengths in enumerate(LENGTHS):
    ends = np.cumsum(lengths)
    places += [(row, slice(end - n, end)) for end, n in zip(ends, lengths, strict=True)]
  return tokens, targets, places


def make_model(**changes):
  config = GPT2Config(
    **dict(
      vocab_size=V,
      context_length=T,
      num_layers=2,
      num_heads=2,
      embed_dim=8,
      positional_encoding="learned",
    )
    | changes
  )
  return GPT2(config), random_params(GPT2(config.plain), seed=1)


@functools.cache
def loss_and_gradients_alone():
  """Of the plain model, each document in a row of its own."""
  model, params = make_model()
  tokens, targets, places = packed()

  def rows(array, fill):
    whole = np.full((len(places), T), fill, np.int32)
    for i, (row, place) in enumerate(places):
      whole[i, : place.stop - place.start] = array[row, place]
    return whole

  def alone(params):
    batch = {"inputs": rows(tokens, 0), "targets": rows(targets, -1)}
    return summed_loss(model, params, batch)[0]

  return jax.jit(jax.value_and_grad(alone))(params)


class ApartTest(chex.TestCase):
  def test_positions_and_mask(self):
    positions, mask = apart(jnp.array([[4, 4, 4, 5, 7, 7], [1, 1, 1, 1, 1, 1]]))
    self.assertEqual(positions.tolist(), [[0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5]])
    block = np.zeros((6, 6), bool)
    block[:3, :3] = block[3, 3] = block[4:, 4:] = True
    chex.assert_trees_all_equal(
      np.array(mask), np.stack([block, np.ones((6, 6), bool)])
    )

  @parameterized.parameters("learned", "sinusoidal", "rotary", "alibi")
  def test_logits_of_each_are_those_of_it_alone(self, encoding):
    model, params = make_model(positional_encoding=encoding)
    tokens, _, places = packed()
    logits = jax.jit(
      lambda: model.apply(params, tokens, *apart(jnp.array(DOCUMENTS)))
    )()
    logits = np.asarray(logits)
    for row, place in places:
      alone = reference_logits(params, tokens[row : row + 1, place], model.config)
      assert_close(logits[row : row + 1, place], alone, dtype=np.float32)

  @parameterized.parameters(
    {},
    {"attention": "flash"},
    {"scan_layers": True, "remat": "full"},
  )
  def test_loss_and_gradients_are_the_sums_of_those_alone(self, **changes):
    model, params = make_model(**changes)
    tokens, targets, _ = packed()

    def together(params):
      params = stack_layers(params) if model.config.scan_layers else params
      batch = {"inputs": tokens, "targets": targets, "documents": DOCUMENTS}
      return summed_loss(model, params, batch)

    (total, count), grads = jax.jit(jax.value_and_grad(together, has_aux=True))(params)
    expected, expected_grads = loss_and_gradients_alone()
    self.assertEqual(count, np.count_nonzero(targets >= 0))
    assert_close(total, expected, 2 * ROUNDINGS)
    assert_close(grads, expected_grads, 4 * ROUNDINGS, scale=sizes(expected_grads))
