"""The loss in chunks is the loss, and needs the memory of a chunk."""

from unittest import mock

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gpt2_flax.model_config import GPT2Config
from gpt2_flax.training import loss as loss_lib
from gpt2_flax.training.loss import summed_cross_entropy, summed_loss
from gpt2_flax.transformer import GPT2
from tests.close import assert_close, ROUNDINGS, sizes, walk
from tests.params import random_params
from tests.reference import reference_logits

B, T, D, V = 3, 7, 8, 11
# In a row: a logit, a logarithm of a sum of exponentials, a loss, and their sum; in a
# gradient a softmax and a product stand for the loss.
LOSS = D + (V + 5) + 2 + B * T
# bfloat16's, of a model with one block: see tests/close.py
HALF = 3 + 36 + 2


def examples(dtype=jnp.float32):
  rng = np.random.default_rng(0)
  targets = rng.integers(0, V, (B, T)).astype(np.int32)
  targets[0, :5] = targets[2, 6] = -1
  hidden = jnp.array(2 * rng.normal(size=(B, T, D)), dtype)
  return hidden, jnp.array(rng.normal(size=(V, D)), jnp.float32), jnp.array(targets)


def plain(hidden, embedding, targets):
  """With all logits, and gradients as autodiff finds them; in float32."""
  logits = hidden.astype(jnp.float32) @ embedding.T
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits, jnp.maximum(targets, 0)
  )
  return jnp.sum(losses * (targets >= 0))


def in_chunks_of(columns, aligned=False):
  """At most `columns` positions of each row at a time."""
  rows = 128 if aligned else V
  return mock.patch.multiple(
    loss_lib, LOGITS_AT_ONCE=B * rows * columns, ALIGNED_FROM=1 if aligned else 10**9
  )


def with_gradients(function):
  """Jitted anew, for what is patched."""
  return jax.jit(jax.value_and_grad(lambda *args: function(*args), argnums=(0, 1)))


class SummedCrossEntropyTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_is_minus_the_log_probability_of_the_targets_that_count(self):
    hidden, embedding, targets = examples()
    expected = 0.0
    for states, row in zip(*map(np.asarray, (hidden, targets)), strict=True):
      for state, target in zip(states.astype(np.float64), row, strict=True):
        if target >= 0:
          scores = np.asarray(embedding, np.float64) @ state
          expected -= scores[target] - np.log(np.exp(scores).sum())
    found = self.variant(summed_cross_entropy)(hidden, embedding, targets)
    assert_close(found, expected, LOSS)

  # Chunks of 2 and more do not divide T, and so end on positions made up.
  @parameterized.parameters((7, True), (1, False), (2, True), (3, False))
  def test_equals_optax_in_value_and_gradients(self, columns, aligned):
    self.equal_optax(columns, aligned)

  @parameterized.product(columns=(7, 1, 2, 3, 4), aligned=(False, True))
  @pytest.mark.slow
  def test_so_it_does_in_every_chunk(self, columns, aligned):
    self.equal_optax(columns, aligned)

  def equal_optax(self, columns, aligned):
    with in_chunks_of(columns, aligned):
      found = with_gradients(summed_cross_entropy)(*examples())
      alone = jax.jit(lambda *args: summed_cross_entropy(*args))(*examples())
    expected = with_gradients(plain)(*examples())
    assert_close((*found, alone), (*expected, expected[0]), 2 * LOSS)

  @parameterized.parameters(1, 3)
  def test_the_gradient_is_that_of_the_whole_expression(self, num_chunks):
    def tenfold(loss):
      return lambda hidden, *args: 10 * loss(hidden**2, *args) - 3

    with in_chunks_of(-(-T // num_chunks)):
      found = with_gradients(tenfold(summed_cross_entropy))(*examples())
    expected = with_gradients(tenfold(plain))(*examples())
    # and of a square, its slope and the rest of the expression
    assert_close(found, expected, 2 * (LOSS + 5))

  @parameterized.parameters(7, 2)
  def test_bfloat16_is_near_and_sums_in_float32(self, columns):
    hidden, embedding, targets = examples(jnp.bfloat16)
    hidden = hidden / 4  # logits of 1 or so
    with in_chunks_of(columns):
      loss, grads = with_gradients(summed_cross_entropy)(hidden, embedding, targets)
    exact, exact_grads = with_gradients(plain)(hidden, embedding, targets)
    chex.assert_type([loss, *grads], [jnp.float32, jnp.bfloat16, jnp.float32])
    # The table's rounding moves a logit as its parts are large, and a loss by two such;
    # then there are a slope's, and a gradient's on both ways.
    parts = float(jnp.max(jnp.abs(hidden.astype(jnp.float32)) @ jnp.abs(embedding).T))
    scale = parts * (targets >= 0).sum()
    assert_close(loss, exact, 2, scale=scale, dtype=jnp.bfloat16)
    assert_close(grads, exact_grads, parts + 1 + 2, dtype=jnp.bfloat16)
    error = jnp.abs(grads[1] - exact_grads[1]).max()
    self.assertGreater(error, 1e-6)  # so it was not float32

  @parameterized.parameters(7, 2)
  def test_bfloat16_products_are_summed_in_float32(self, columns):
    """Of factors that bfloat16 can say, so that nothing but a sum is rounded."""
    rng, vocab_size = np.random.default_rng(0), 8
    hidden = rng.integers(-128, 129, (B, T, D)) / 64
    embedding = rng.integers(-128, 129, (vocab_size, D)) / 64
    targets = rng.integers(0, vocab_size, (B, T))

    def run(embedding):
      with in_chunks_of(columns):
        return with_gradients(summed_cross_entropy)(
          jnp.array(hidden, jnp.bfloat16),
          jnp.array(embedding, jnp.float32),
          jnp.array(targets, jnp.int32),
        )

    logits = hidden @ embedding.T
    at_targets = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    expected = np.log(np.exp(logits).sum(-1)) - at_targets
    assert_close(run(embedding)[0], expected.sum(), LOSS, dtype=np.float32)
    # Where all logits are 0, the slopes are eighths, and their sums exact in float32.
    slopes = 1 / vocab_size - np.eye(vocab_size)[targets]
    expected = np.einsum("btv,btd->vd", slopes, hidden)
    as_bfloat16 = expected.astype(jnp.bfloat16).astype(np.float64)
    self.assertTrue((expected != as_bfloat16).any())
    _, (_, found) = run(np.zeros_like(embedding))
    chex.assert_trees_all_equal(found, expected.astype(np.float32))

  @parameterized.parameters(7, 2)
  def test_where_nothing_counts_all_is_zero(self, columns):
    hidden, embedding, targets = examples()
    hidden = hidden.at[0, 0].set(1e30)  # and what does not count may be anything
    with in_chunks_of(columns), jax.debug_nans(True):
      loss, grads = with_gradients(summed_cross_entropy)(
        hidden, embedding, jnp.full_like(targets, -1)
      )
    self.assertEqual(loss, 0)
    chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, grads))

  def test_large_logits_are_no_trouble(self):
    hidden, embedding, targets = examples()
    found = with_gradients(summed_cross_entropy)(1e4 * hidden, embedding, targets)
    chex.assert_tree_all_finite(found)
    expected = with_gradients(plain)(1e4 * hidden, embedding, targets)
    assert_close(found, expected)

  def test_under_vmap_each_is_what_it_is_alone(self):
    hidden, embedding, targets = examples()
    several = jnp.stack([hidden, hidden[::-1], -hidden])
    with in_chunks_of(3):
      grad = jax.grad(summed_cross_entropy, argnums=(0, 1))
      found = jax.jit(jax.vmap(grad, in_axes=(0, None, None)))(
        several, embedding, targets
      )
    for i, one in enumerate(several):
      _, expected = with_gradients(plain)(one, embedding, targets)
      ith = jax.tree.map(lambda leaf, i=i: leaf[i], found)
      assert_close(ith, expected, 2 * LOSS)

  def test_small_models_take_one_chunk_and_gpt2_a_few(self):
    def num_chunks(rows, length, vocab_size, num_devices=1):
      targets = jax.ShapeDtypeStruct((rows, length), jnp.int32)
      table = np.broadcast_to(np.float32(0), (vocab_size, 1))
      return loss_lib._num_chunks(targets, table, num_devices)

    self.assertEqual(num_chunks(32, 48, 70), 1)
    self.assertEqual(num_chunks(64, 256, 65), 1)
    self.assertEqual(num_chunks(16, 1024, 50_304), 4)
    self.assertEqual(num_chunks(16 * 8, 1024, 50_304, 8), 4)
    self.assertEqual(num_chunks(2**20, 5, 50_304), 5)  # one position is the least

  def test_the_logits_are_never_there_as_a_whole(self):
    batch_size, length, dim, vocab_size = 4, 256, 64, 50_257
    shapes = (
      jax.ShapeDtypeStruct((batch_size, length, dim), jnp.float32),
      jax.ShapeDtypeStruct((vocab_size, dim), jnp.float32),
      jax.ShapeDtypeStruct((batch_size, length), jnp.int32),
    )
    logits_bytes = 4 * batch_size * length * vocab_size

    def memory(function):
      compiled = with_gradients(function).lower(*shapes).compile()
      return compiled.memory_analysis().temp_size_in_bytes

    with mock.patch.object(loss_lib, "LOGITS_AT_ONCE", batch_size * 32 * 50_304):
      self.assertLess(memory(summed_cross_entropy), 0.75 * logits_bytes)
    self.assertGreater(memory(plain), logits_bytes)


class SummedLossTest(chex.TestCase):
  def test_its_slope_is_the_difference_quotient_and_the_gradients_share(self):
    self.assert_slope(tied=False)

  @pytest.mark.slow  # of the logits that test_is_that_of_the_models_logits knows
  def test_so_it_is_if_the_embeddings_are_tied(self):
    self.assert_slope(tied=True)

  def assert_slope(self, tied):
    config = GPT2Config(
      vocab_size=V,
      context_length=T,
      num_layers=1,
      num_heads=2,
      embed_dim=D,
      tied_embeddings=tied,
    )
    model = GPT2(config)
    targets = np.asarray(examples()[2])
    batch = {"inputs": np.maximum(targets, 0)[::-1], "targets": targets}
    params, tangent = (random_params(model, seed=seed) for seed in range(2))

    def exact(along):
      moved = jax.tree.map(
        lambda p, t: p.astype(np.float64) + along * t, params, tangent
      )
      logits = reference_logits(moved, batch["inputs"], config)
      chosen = np.take_along_axis(logits, np.maximum(targets, 0)[..., None], -1)
      losses = np.log(np.exp(logits).sum(-1)) - chosen[..., 0]
      return losses[targets >= 0].sum()

    def loss(params):
      return summed_loss(model, params, batch)[0]

    with in_chunks_of(3):
      value, slope = jax.jit(lambda *args: jax.jvp(loss, *args))((params,), (tangent,))
      gradient = jax.jit(jax.grad(loss))(params)
    # Off by the sixth of the third derivative times 1e-8, and by roundings of float64.
    quotient = (exact(1e-4) - exact(-1e-4)) / 2e-4
    shares = jax.tree.map(lambda g, t: np.sum(g * t), gradient, tangent)
    total = sum(map(float, jax.tree.leaves(shares)))
    parts = sum(
      float(np.abs(g * t).sum())
      for g, t in zip(*map(jax.tree.leaves, (gradient, tangent)), strict=True)
    )
    assert_close(value, exact(0))
    found, expected = np.array([slope, total]), np.array([quotient] * 2)
    assert_close(found, expected, 2 * ROUNDINGS, scale=parts, dtype=np.float32)

  @parameterized.parameters((True, "float32"), (False, "bfloat16"))
  def test_is_that_of_the_models_logits(self, tied, dtype):
    self.assert_of_logits(tied, dtype)

  @pytest.mark.slow
  def test_so_it_is_with_neither(self):
    self.assert_of_logits(False, "float32")

  def assert_of_logits(self, tied, dtype):
    model = GPT2(
      GPT2Config(
        vocab_size=V,
        context_length=T,
        num_layers=1,
        num_heads=2,
        embed_dim=D,
        tied_embeddings=tied,
        dtype=dtype,
      )
    )
    targets = examples()[2]
    batch = {"inputs": jnp.maximum(targets, 0)[::-1], "targets": targets}
    params = random_params(model, scale=0.5)

    def expected(params):
      logits = model.apply(params, batch["inputs"])
      losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.maximum(targets, 0)
      )
      return jnp.sum(losses, where=targets >= 0)

    with in_chunks_of(3):
      (loss, count), grads = jax.jit(
        jax.value_and_grad(
          lambda params: summed_loss(model, params, batch), has_aux=True
        )
      )(params)
    exact, exact_grads = jax.jit(jax.value_and_grad(expected))(params)
    self.assertEqual(count, B * T - 6)
    half = 2 * HALF  # on both ways
    roundings = {"float32": ROUNDINGS, "bfloat16": walk(half)}[dtype]
    assert_close(loss, exact, roundings, dtype=dtype)
    roundings = {"float32": 2 * ROUNDINGS, "bfloat16": walk(2 * half)}[dtype]
    scale = sizes(exact_grads)
    assert_close(grads, exact_grads, roundings, scale=scale, dtype=dtype)
