"""The lesson on scaling: the softmax's derivative written out, and the verdict."""

from unittest import mock

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from lessons import scaling
from lessons.scaling import HEAD_DIMS, WITH, WITHOUT
from tests.close import assert_close
from tests.lessons.stubs import all_but, figures, held, picture_size, table

PAGE = {  # medians of entropy, and of the gradient at the query, by head_dim
  WITH: ((3.77, 3.72, 3.71, 3.71, 3.71), (0.147, 0.164, 0.168, 0.169, 0.166)),
  WITHOUT: ((2.92, 1.43, 0.505, 0.065, 7e-4), (0.37, 0.82, 0.79, 0.16, 2.2e-3)),
}


class MeasureTest(chex.TestCase):
  @parameterized.parameters(True, False)
  def test_is_the_derivative_written_out(self, scaled):
    head_dim, num_rows, num_keys = 6, 4, 5
    shapes = (num_rows, 1, head_dim), (num_rows, num_keys, head_dim)
    shapes = *shapes, (num_rows, 1, num_keys)
    rng = np.random.default_rng(0)
    queries, keys, wanted = drawn = [rng.normal(size=shape) for shape in shapes]

    def split(seed, number):
      self.assertEqual((seed, number), (3, 3))
      return range(number)

    def normal(key, shape):
      self.assertEqual(drawn[key].shape, shape)
      return jnp.asarray(drawn[key], jnp.float32)

    with (
      mock.patch.object(scaling, "NUM_KEYS", num_keys),
      # jax's own take a second for each shape to compile
      mock.patch.multiple(jax.random, key=int, split=split, normal=normal),
    ):
      measure = jax.jit(scaling.measure, static_argnums=(0, 1, 2, 3))
      measured = np.asarray(measure(head_dim, scaled, num_rows, 3))
    chex.assert_shape(measured, (3, num_rows))
    divisor = np.sqrt(head_dim) if scaled else 1.0
    expected = np.zeros((3, num_rows))
    for row in range(num_rows):
      powers = np.exp(keys[row] @ queries[row, 0] / divisor)
      p = powers / powers.sum()
      at_scores = (np.diag(p) - np.outer(p, p)) @ wanted[row, 0]
      at_query = keys[row].T @ at_scores / divisor
      expected[0, row] = -(p * np.log(p)).sum()
      expected[1:, row] = np.linalg.norm(at_scores), np.linalg.norm(at_query)
    assert_close(list(measured), list(expected))


class VerdictTest(chex.TestCase):
  """On the figures of the page, and on some that one finding does not bear."""

  def run_on(self, spoilt=None, reduced=False, picture=False):
    """Args: (head_dim, with or without, row of measure) -> median."""

    def measure(head_dim, scaled, num_rows, seed):
      name = WITH if scaled else WITHOUT
      entropy, at_query = (of[HEAD_DIMS.index(head_dim)] for of in PAGE[name])
      medians = [
        (spoilt or {}).get((head_dim, name, i), value)
        for i, value in enumerate((entropy, 0.15, at_query))
      ]
      # now and then a row is far from the others
      rare = jnp.where(jnp.arange(num_rows) % 3 == seed, 30.0, 1.0)
      return jnp.array(medians)[:, None] * rare[None]

    with (
      mock.patch.object(scaling, "measure", measure),
      mock.patch.object(scaling, "new_figure", figures(picture)),
    ):
      return scaling.run(reduced)

  def test_holds(self):
    report = self.run_on(picture=True)
    self.assertEqual(held(report), [True] * 4)
    self.assertBetween(picture_size(report), 5_000, 150_000)
    rows = table(report, "A fresh head")
    self.assertEqual([row["head_dim"] for row in rows[::2]], list(HEAD_DIMS))
    for name, row in zip((WITH, WITHOUT), rows[-2:], strict=True):
      entropy, at_query = (of[-1] for of in PAGE[name])
      self.assertEqual(row["scores"], name)
      columns = "entropy, nats", "gradient at scores", "gradient at query"
      found = [row[column] for column in columns]
      assert_close(found, [entropy, 0.15, at_query], dtype=np.float32)
      lost = 0.0 if name == WITH else 2 / 3
      # a third of 512 rows is no whole number
      self.assertAlmostEqual(row["rows lost"], lost, delta=1 / 512)

  @parameterized.parameters(
    (0, {(64, WITH, 0): 3.4}),
    (0, {(head_dim, WITH, 0): 3.05 for head_dim in HEAD_DIMS}),
    (1, {(256, WITHOUT, 0): 0.3, (1024, WITHOUT, 0): 0.2}),
    (1, {(16, WITHOUT, 0): 3.0}),
    (2, {(16, WITH, 2): 0.25}),
    (3, {(4, WITHOUT, 2): 0.9}),
    (3, {(1024, WITHOUT, 2): 0.02}),
  )
  def test_does_not_hold(self, finding, spoilt):
    self.assertEqual(held(self.run_on(spoilt)), all_but(4, finding))
