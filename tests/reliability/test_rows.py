"""Each row of the reliability table with a few tries; the campaign makes many."""

import pathlib
import random
import tempfile

from absl.testing import parameterized
import chex

from tests.reliability.rows import ROWS

SEED = 0


class RowsTest(chex.TestCase):
  @parameterized.named_parameters((f"row_{row.number}", row) for row in ROWS)
  def test_holds(self, row):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    tally = row.run(folder, random.Random(f"{SEED} {row.number}"), False)
    self.assertGreater(tally.tried, 0)
    self.assertEqual(tally.failures, [])
    self.assertEqual(tally.held, tally.tried)
