"""The lesson on induction, at its reduced size."""

import chex

from lessons import induction


class InductionTest(chex.TestCase):
  def test_halfway_is_where_a_curve_crosses(self):
    self.assertAlmostEqual(
      induction.halfway([50, 100, 150], [3.0, 3.0, 1.0], 2.5), 112.5
    )
    self.assertAlmostEqual(induction.halfway([10, 20], [0.0, 1.0], 0.3), 13.0)
