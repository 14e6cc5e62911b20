import math

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax.errors import InputError
from gpt2_flax.positional_encoding import (
  PositionalEncoding,
  sinusoidal_positional_encoding,
)


def frequency(feature, embed_dim, max_period=10_000.0):
  pair = feature // 2
  return 1.0 / max_period ** (2 * pair / embed_dim)


def paper(positions, embed_dim, max_period=10_000.0):
  """Vaswani et al. (2017), section 3.5, number by number in float64."""
  positions = np.asarray(positions)
  encoding = np.empty((*positions.shape, embed_dim), np.float64)
  for index in np.ndindex(positions.shape):
    for feature in range(embed_dim):
      angle = float(positions[index]) * frequency(feature, embed_dim, max_period)
      wave = math.cos if feature % 2 else math.sin
      encoding[(*index, feature)] = wave(angle)
  return encoding


def float32_error(positions):
  """What float32 may be off by: an angle is rounded in proportion to its size."""
  return 1e-6 + 1e-7 * float(np.max(positions))


def embeddings():
  return jnp.array(np.random.default_rng(0).normal(size=(2, 5, 6)), jnp.float32)


class SinusoidalTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.product(
    positions=(3, [0, 1, 2, 49], [[[5, 0]], [[1, 30]]]), embed_dim=(1, 7, 16)
  )
  def test_is_the_papers_formula(self, positions, embed_dim):
    encode = self.variant(sinusoidal_positional_encoding, static_argnums=1)
    encoding = encode(jnp.array(positions), embed_dim)
    chex.assert_shape(encoding, (*np.shape(positions), embed_dim))
    chex.assert_type(encoding, jnp.float32)
    chex.assert_trees_all_close(
      encoding, paper(positions, embed_dim), atol=float32_error(positions), rtol=0
    )

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(1_000, 100_000)
  def test_far_out_positions(self, far):
    positions = far + np.arange(20)
    encode = self.variant(sinusoidal_positional_encoding, static_argnums=1)
    encoding = encode(positions, 15)
    chex.assert_trees_all_close(
      encoding, paper(positions, 15), atol=float32_error(positions), rtol=0
    )

  def test_max_period(self):
    chex.assert_trees_all_close(
      sinusoidal_positional_encoding(jnp.arange(50), 8, 100.0),
      paper(np.arange(50), 8, 100.0),
      atol=float32_error(50),
      rtol=0,
    )

  @parameterized.parameters(1, 7, 100)
  def test_a_shift_rotates_each_pair(self, offset):
    embed_dim = 12
    positions = jnp.arange(40)
    pairs_shape = (len(positions), embed_dim // 2, 2)
    here = sinusoidal_positional_encoding(positions, embed_dim)
    there = sinusoidal_positional_encoding(positions + offset, embed_dim)
    # One matrix a pair, the same for all positions.
    angles = [offset * frequency(2 * pair, embed_dim) for pair in range(embed_dim // 2)]
    rotations = np.array(
      [[[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]] for a in angles]
    )
    rotated = np.einsum("pij,tpj->tpi", rotations, here.reshape(pairs_shape))
    chex.assert_trees_all_close(
      there.reshape(pairs_shape), rotated, atol=float32_error(40 + offset), rtol=0
    )


class PositionalEncodingTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(
    (None,), ([[0, 1, 2, 3, 4]],), ([[7, 3, 3, 0, 1], [0, 1, 0, 1, 2]],)
  )
  def test_adds_the_sinusoid(self, positions):
    x = embeddings()
    given = None if positions is None else jnp.array(positions)
    module = PositionalEncoding("sinusoidal")
    self.assertEmpty(module.init(jax.random.key(1), x))
    out = self.variant(module.apply)({}, x, given)
    encoding = paper([[0, 1, 2, 3, 4]] if positions is None else positions, 6)
    chex.assert_trees_all_close(out, np.asarray(x) + encoding, atol=2e-6, rtol=0)

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(
    (None,), ([[0, 1, 2, 3, 4]],), ([[7, 3, 3, 0, 1], [0, 1, 0, 1, 2]],)
  )
  def test_adds_the_learned_vector(self, positions):
    x = embeddings()
    given = None if positions is None else jnp.array(positions)
    module = PositionalEncoding("learned", context_length=8)
    table = np.random.default_rng(2).normal(size=(8, 6)).astype(np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(1), x)
    params = jax.tree.map(lambda _: jnp.asarray(table), shapes)
    chex.assert_trees_all_equal_shapes(params, shapes)
    out = self.variant(module.apply)(params, x, given)
    rows = np.array([[0, 1, 2, 3, 4]] if positions is None else positions)
    chex.assert_trees_all_close(out, np.asarray(x) + table[rows], atol=1e-6, rtol=0)

  @chex.variants(with_jit=True, without_jit=True)
  def test_none_adds_nothing(self):
    x = embeddings()
    module = PositionalEncoding("none")
    self.assertEmpty(module.init(jax.random.key(1), x))
    out = self.variant(module.apply)({}, x, jnp.array([[4, 3, 2, 1, 0]]))
    chex.assert_trees_all_equal(out, x)

  @parameterized.parameters("sinusoidal", "learned", "none")
  def test_keeps_the_embeddings_dtype(self, kind):
    x = embeddings().astype(jnp.bfloat16)
    out, params = PositionalEncoding(kind).init_with_output(jax.random.key(1), x)
    chex.assert_type(out, jnp.bfloat16)
    for leaf in jax.tree.leaves(params):
      chex.assert_type(leaf, jnp.float32)

  @parameterized.product(x=(jnp.float32, jnp.bfloat16), dtype=("float32", "bfloat16"))
  def test_dtype_is_that_of_the_result(self, x, dtype):
    out = PositionalEncoding("sinusoidal", dtype=dtype).apply(
      {}, embeddings().astype(x)
    )
    chex.assert_type(out, jnp.dtype(dtype))

  @parameterized.parameters(
    ("sinusoid", "sinusoidal"), ("learnt", "learned"), ("None", "none")
  )
  def test_refuses_an_unknown_kind_and_names_the_nearest(self, kind, nearest):
    with self.assertRaisesRegex(InputError, f"'{kind}': did you mean '{nearest}'"):
      PositionalEncoding(kind).apply({}, embeddings())

  def test_refuses_embeddings_without_a_batch_axis(self):
    with self.assertRaisesRegex(AssertionError, "rank"):
      PositionalEncoding().apply({}, embeddings()[0])
