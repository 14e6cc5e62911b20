"""The lesson on induction, at its reduced size."""

import chex

from lessons import induction


class InductionTest(chex.TestCase):
  def test_claim_holds(self):
    report = induction.run(reduced=True)
    self.assertTrue(report.holds, report.findings)
    trainings, losses = report.tables.values()
    one, two = trainings
    self.assertEqual((one["layers"], two["layers"]), (1, 2))
    self.assertBetween(one["above the floor"], 1.0, 2.3)
    self.assertBetween(two["above the floor"], 0.0, 0.3)
    self.assertLess(one["induction score"], 0.3)
    self.assertGreater(two["induction score"], 0.8)
    (without,) = losses
    self.assertGreater(without["both induction heads"], without["one induction head"])
    self.assertGreater(without["previous-token head"], without["first layer's other"])

  def test_halfway_is_where_a_curve_crosses(self):
    self.assertAlmostEqual(
      induction.halfway([50, 100, 150], [3.0, 3.0, 1.0], 2.5), 112.5
    )
    self.assertAlmostEqual(induction.halfway([10, 20], [0.0, 1.0], 0.3), 13.0)
