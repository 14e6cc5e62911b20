"""The lesson on scaling laws, on rows that a planted law has made."""

import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import parameterized
import chex
import numpy as np

from lessons import scaling_law
from lessons.power_laws import Law
from lessons.scaling_law import LARGER, local_exponents, read_runs, Runs, scatter
from tests.close import assert_close
from tests.lessons.stubs import figures, held, picture_size, table

LAW = Law(A=30.0, a=0.4, B=60.0, b=0.4)
FLOOR = 2.0
STEPS = (48, 144, 432, 1296)
TOKENS_A_STEP = 2048


def rows(law=LAW, floor=FLOOR, larger=1.0, bend=0.0):
  """What the study would write.

  Args:
    larger: the larger model's gap is so many times what the law says.
    bend: the exponent of the size grows so much with each factor e of the size.
  """
  rng = np.random.default_rng(0)
  found = []
  for depth in (*range(1, 8), LARGER):
    size = 3072.0 * depth**3
    for num_steps in STEPS:
      for seed in range(3):
        gap = float(law(size, TOKENS_A_STEP * num_steps))
        gap *= np.exp(0.01 * rng.normal() - bend * np.log(size / 2e5) ** 2)
        gap *= larger if depth == LARGER else 1.0
        over = {"config": depth, "train.num_steps": num_steps, "train.seed": seed}
        measured = {"val/loss": floor + gap, "val/gap": gap}
        name = f"config={depth},num_steps={num_steps},seed={seed}"
        found.append({"member": name, "over": over, "step": num_steps} | measured)
  return found


def write(folder, rows):
  path = pathlib.Path(folder) / "rows.jsonl"
  path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  return path


class RunsTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())

  def test_reads_what_the_study_wrote(self):
    some = rows()
    some[5] = {"member": "bad", "over": some[5]["over"], "diverged": "the loss is nan"}
    runs = read_runs(write(self.folder, some))
    self.assertLen(runs.sizes, len(some) - 1)
    assert_close(runs.tokens[:6:3], np.array([48.0 * 2048, 144.0 * 2048]))
    of_two = runs.where(runs.depth == 2)
    assert_close(np.unique(of_two.sizes), np.array([12.0 * 2 * 32**2]))
    assert_close(of_two.computation[0], 6 * 24576.0 * 48 * 2048)
    assert_close(runs.losses - runs.gaps, np.full(len(some) - 1, FLOOR))

  def test_scatter_tells_the_law_from_the_seeds(self):
    depth, tokens = np.array([1.0, 1, 2, 2]), np.full(4, 100.0)
    gaps = np.exp([0.1, -0.1, 0.3, 0.5])
    runs = Runs(depth, depth, tokens, gaps, gaps)
    off, among_seeds = scatter(runs, lambda sizes, tokens: np.ones_like(sizes))
    assert_close(off, np.sqrt((0.01 + 0.01 + 0.09 + 0.25) / 4))
    assert_close(among_seeds, np.sqrt((4 * 0.01) / 2))

  def test_local_exponents(self):
    sizes, tokens = np.array([1.0, 2, 4, 1, 4]), np.array([8.0, 8, 8, 2, 2])
    gaps = np.array([1.0, 0.5, 0.125, 3.0, 2.0])
    runs = Runs(sizes, sizes, tokens, gaps, gaps)
    assert_close(local_exponents(runs, "sizes"), [1.0, 2.0])
    assert_close(local_exponents(runs, "tokens"), [np.log(16) / np.log(4)])


class VerdictTest(chex.TestCase):
  def run_on(self, found, again=(3.0, 3.0), picture=False):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    with (
      mock.patch.object(scaling_law, "STUDY", write(folder, found)),
      mock.patch.object(scaling_law, "again", return_value=again),
      mock.patch.object(scaling_law, "new_figure", figures(picture)),
    ):
      return scaling_law.run(reduced=True)

  def test_holds_for_a_planted_law(self):
    report = self.run_on(rows(), picture=True)
    self.assertEqual(held(report), [True] * 6, report.findings)
    self.assertGreater(picture_size(report), 10_000)
    known, text = table(report, "Two fits")
    self.assertEqual(known["E"], "2.0000")
    for fitted in (known, text):
      self.assertAlmostEqual(float(fitted["a, of size"].split()[0]), 0.4, delta=0.02)
    self.assertAlmostEqual(float(text["E"].split()[0]), 2.0, delta=0.02)
    (*_, last) = table(report, "A model four times larger")
    self.assertEqual(last["tokens"], 1296 * 2048)
    best = table(report, "Best sizes")
    ratios = [float(row["tokens a parameter"].split()[0]) for row in best]
    least = 2.0 ** (2 * 1.25)  # as a is b, and B twice A: D / N at equation 4
    for ratio in ratios:
      self.assertBetween(ratio, 0.8 * least, 1.25 * least)
    [title] = [title for title in report.tables if title.startswith("Two fits")]
    self.assertIn("84 runs", title)  # the larger model's is none of them

  @parameterized.parameters(
    (0, dict(), (3.0, 3.1)),
    (1, dict(bend=0.05), (3.0, 3.0)),
    (3, dict(larger=0.7), (3.0, 3.0)),
    (5, dict(law=Law(A=100.0, a=0.6, B=60.0, b=0.4)), (3.0, 3.0)),
  )
  def test_does_not(self, finding, changes, again):
    self.assertFalse(held(self.run_on(rows(**changes), again))[finding])
