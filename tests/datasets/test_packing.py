"""Every piece is in one row, no row is too full, and little room is left."""

from absl.testing import parameterized
import chex
import numpy as np

from gpt2_flax.datasets.packing import pack


class PackTest(chex.TestCase):
  @parameterized.parameters(
    ([5, 4, 3, 2, 2], 8, [[0, 2], [1, 3, 4]]),
    # 6, 5, 4, 3: the 3 goes where it leaves the least
    ([3, 4, 5, 6], 9, [[0, 3], [1, 2]]),
    ([1, 1, 1], 1, [[0], [1], [2]]),
    ([2, 7, 2, 2], 7, [[0, 2, 3], [1]]),
    ([], 5, []),
  )
  def test_by_hand(self, sizes, capacity, rows):
    self.assertEqual(pack(sizes, capacity), rows)

  @parameterized.parameters(16, 100)
  def test_each_piece_once_and_rows_well_filled(self, capacity):
    sizes = np.random.default_rng(capacity).integers(1, capacity + 1, 500).tolist()
    rows = pack(sizes, capacity)
    self.assertEqual(sorted(piece for row in rows for piece in row), list(range(500)))
    self.assertEqual(rows, sorted(sorted(row) for row in rows))
    filled = [sum(sizes[piece] for piece in row) for row in rows]
    self.assertLessEqual(max(filled), capacity)
    # at most 11/9 of the least number there can be, and one (Johnson, 1973)
    self.assertLessEqual(len(rows), 11 / 9 * -(-sum(sizes) // capacity) + 4)
    # nor does a row have room for the smallest piece of another
    for row, full in zip(rows, filled, strict=True):
      later = [min(sizes[p] for p in other) for other in rows if other is not row]
      self.assertLess(capacity - full, max(later))
