import itertools
import math

import chex
import jax
import numpy as np

from gpt2_flax.layers.dropout import Dropout
from tests.params import random_params
from tests.test_transformer import B, random_key, T, TINY, tiny, tokens


class DropoutTest(chex.TestCase):
  def test_is_on_exactly_when_an_rng_is_given(self):
    model = tiny(dropout_rate=0.2)
    params = random_params(model, scale=0.5)
    without = np.asarray(jax.jit(tiny().apply)(params, tokens()))
    apply = jax.jit(model.apply)
    chex.assert_trees_all_equal(apply(params, tokens()), without)
    one, again, other = (
      np.asarray(apply(params, tokens(), rngs={"dropout": random_key(key)}))
      for key in (1, 1, 2)
    )
    chex.assert_trees_all_equal(one, again)
    self.assertGreater(np.abs(one - without).max(), 0.1)
    self.assertGreater(np.abs(one - other).max(), 0.1)

  def test_rate_zero_is_no_dropout(self):
    model = tiny()
    params = random_params(model, scale=0.5)
    apply = jax.jit(model.apply)
    chex.assert_trees_all_equal(
      apply(params, tokens(), rngs={"dropout": random_key(1)}), apply(params, tokens())
    )

  def test_embeddings_lose_their_share_and_keep_their_mean(self):
    model = tiny(dropout_rate=0.25)
    params = random_params(model, scale=0.5)

    @jax.jit
    def embed(rngs):
      row = np.tile(tokens((1, T)), (1000, 1))
      return model.apply(params, row, np.arange(T)[None], method="embed", rngs=rngs)

    drawn, whole = embed({"dropout": random_key(1)}), embed({})
    five_standard_errors = 5 * math.sqrt(0.25 * 0.75 / drawn.size)
    self.assertLess(abs(np.mean(drawn == 0) - 0.25), five_standard_errors)
    # one in four is 0, the others are 4/3 of themselves
    five_standard_errors = 5 * np.abs(whole[0]) * math.sqrt(1 / 3 / 1000)
    np.testing.assert_array_less(np.abs(drawn.mean(0) - whole[0]), five_standard_errors)

  def test_each_place_draws_its_own(self):
    model = tiny(dropout_rate=0.5)
    _, state = jax.jit(
      lambda params: model.apply(
        params,
        tokens(),
        rngs={"dropout": random_key(1)},
        capture_intermediates=lambda module, _: isinstance(module, Dropout),
        mutable=["intermediates"],
      )
    )(random_params(model, scale=0.5))
    dropped = [np.asarray(leaf) == 0 for leaf in jax.tree.leaves(state)]
    residual = [mask for mask in dropped if mask.shape == (B, T, TINY.embed_dim)]
    heads = [mask for mask in dropped if mask.shape == (2, B, T, T)]
    self.assertLen(residual, 1 + 2 * 2)
    self.assertLen(heads, 2)
    looked_at = [mask[..., np.tri(T, dtype=bool)] for mask in heads]
    for masks in residual, looked_at:
      for one, other in itertools.combinations(masks, 2):
        five_standard_errors = 5 * math.sqrt(0.5 * 0.5 / one.size)
        self.assertLess(abs(np.mean(one == other) - 0.5), five_standard_errors)
