"""The measurement of a fresh head, against the softmax's derivative written out."""

from unittest import mock

from absl.testing import parameterized
import chex
import jax
import numpy as np

from lessons import scaling


class MeasureTest(chex.TestCase):
  @parameterized.parameters(True, False)
  def test_is_the_derivative_written_out(self, scaled):
    head_dim, num_rows, num_keys = 6, 4, 5
    with mock.patch.object(scaling, "NUM_KEYS", num_keys):
      measured = np.asarray(scaling.measure(head_dim, scaled, num_rows, seed=3))
    chex.assert_shape(measured, (3, num_rows))
    random_keys = jax.random.split(jax.random.key(3), 3)
    shapes = (num_rows, 1, head_dim), (num_rows, num_keys, head_dim)
    shapes = *shapes, (num_rows, 1, num_keys)
    queries, keys, wanted = (
      np.asarray(jax.random.normal(key, shape), "f8")
      for key, shape in zip(random_keys, shapes, strict=True)
    )
    divisor = np.sqrt(head_dim) if scaled else 1.0
    for row in range(num_rows):
      powers = np.exp(keys[row] @ queries[row, 0] / divisor)
      p = powers / powers.sum()
      at_scores = (np.diag(p) - np.outer(p, p)) @ wanted[row, 0]
      at_query = keys[row].T @ at_scores / divisor
      expected = [-(p * np.log(p)).sum(), *map(np.linalg.norm, (at_scores, at_query))]
      np.testing.assert_allclose(measured[:, row], expected, rtol=2e-4, atol=1e-6)
