"""Each row of the reliability table with a few tries; the campaign makes many."""

import pathlib
import random
import tempfile

from absl.testing import parameterized
import chex
import pytest

from tests.reliability.rows import ROWS

SEED = 0
# The others start many processes, or wait. What they guard, these tests see at once:
# 1 tests/doors/test_train.py and row 10; 2 datasets/test_pipeline.py;
# 3 training/test_checkpoints.py and row 7; 9 that file and training/test_resume.py;
# 4 doors/test_train.py and training/test_signals.py;
# 6 files/test_atomic.py, training/test_metrics.py and row 7;
# 8 training/eight_devices.py; 11 training/test_watch.py; 12 training/test_workdir.py;
# 13 test_tokenizers.py, test_hub_folder.py, interpret/test_page_in_browser.py, ...
QUICK = (5, 7, 10)


def named(numbers):
  return [(f"row_{row.number}", row) for row in ROWS if row.number in numbers]


class RowsTest(chex.TestCase):
  @parameterized.named_parameters(named(QUICK))
  def test_holds(self, row):
    self.assert_holds(row)

  @parameterized.named_parameters(named({row.number for row in ROWS} - {*QUICK}))
  @pytest.mark.slow
  def test_holds_too(self, row):
    self.assert_holds(row)

  def assert_holds(self, row):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    tally = row.run(folder, random.Random(f"{SEED} {row.number}"), False)
    self.assertGreater(tally.tried, 0)
    self.assertEqual(tally.failures, [])
    self.assertEqual(tally.held, tally.tried)
