import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax.dropout import Dropout
from tests.test_transformer import B, random_key, random_params, T, TINY, tiny, tokens


class DropoutTest(chex.TestCase):
  def test_is_on_exactly_when_an_rng_is_given(self):
    model = tiny(dropout_rate=0.2)
    params = random_params(model)
    without = tiny().apply(params, tokens())
    chex.assert_trees_all_equal(model.apply(params, tokens()), without)
    one, again, other = (
      model.apply(params, tokens(), rngs={"dropout": random_key(key)})
      for key in (1, 1, 2)
    )
    chex.assert_trees_all_equal(one, again)
    self.assertGreater(jnp.abs(one - without).max(), 0.1)
    self.assertGreater(jnp.abs(one - other).max(), 0.1)

  def test_rate_zero_is_no_dropout(self):
    model = tiny()
    params = random_params(model)
    chex.assert_trees_all_equal(
      model.apply(params, tokens(), rngs={"dropout": random_key(1)}),
      model.apply(params, tokens()),
    )

  def test_embeddings_lose_their_share_and_keep_their_mean(self):
    model = tiny(dropout_rate=0.25)
    params = random_params(model)

    @jax.jit
    def embed(rngs):
      row = np.tile(tokens((1, T)), (1000, 1))
      return model.apply(params, row, np.arange(T)[None], method="embed", rngs=rngs)

    drawn, whole = embed({"dropout": random_key(1)}), embed({})
    self.assertBetween(np.mean(drawn == 0), 0.24, 0.26)
    chex.assert_trees_all_close(drawn.mean(0), whole[0], atol=0.2)

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
    )(random_params(model))
    dropped = [np.asarray(leaf) == 0 for leaf in jax.tree.leaves(state)]
    residual = [mask for mask in dropped if mask.shape == (B, T, TINY.embed_dim)]
    heads = [mask for mask in dropped if mask.shape == (2, B, T, T)]
    self.assertLen(residual, 1 + 2 * 2)
    self.assertLen(heads, 2)
    looked_at = [mask[..., np.tri(T, dtype=bool)] for mask in heads]
    for masks in residual, looked_at:
      for one, other in itertools.combinations(masks, 2):
        self.assertBetween(np.mean(one == other), 0.3, 0.7)
