from absl.testing import parameterized
import chex
import numpy as np

from gpt2_flax.rows.prompts import bucket, pad_left


class PaddingTest(chex.TestCase):
  @parameterized.parameters((1, 8), (8, 8), (9, 16), (16, 16), (17, 32), (70, 100))
  def test_bucket(self, length, expected):
    self.assertEqual(bucket(length, most=100), expected)

  def test_texts_end_together(self):
    padded, padding = pad_left([[5], [3, 4, 9], list(range(9))], most=12)
    self.assertEqual(padded.shape, (3, 12))
    self.assertEqual(padded.dtype, np.int32)
    self.assertEqual(padding.tolist(), [11, 9, 3])
    self.assertEqual(padded[0].tolist(), [0] * 11 + [5])
    self.assertEqual(padded[1].tolist(), [0] * 9 + [3, 4, 9])
    self.assertEqual(padded[2].tolist(), [0] * 3 + list(range(9)))
