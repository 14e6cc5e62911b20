"""Which step is bad, what is said of it, and which is one too many."""

import math

from absl.testing import parameterized
import chex

from gpt2_flax.errors import RunError
from gpt2_flax.training.bad_steps import BadSteps


def metrics(skipped, loss=3.0, grad_norm=1.0, targets=48):
  return {
    "train/loss": loss,
    "train/loss_mean": 2.5,
    "train/targets": targets,
    "train/grad_norm": grad_norm,
    "train/skipped": skipped,
  }


class BadStepsTest(chex.TestCase):
  def test_each_is_told_once_and_counted(self):
    bad_steps = BadSteps(num_allowed=3, num_seen=1, last_saved=None)
    told = [bad_steps.check(i, metrics(skipped)) for i, skipped in enumerate((1, 2, 2))]
    self.assertEqual([line is None for line in told], [True, False, True])
    self.assertRegex(
      told[1], "at step 1, after a mean loss of 2.5: left out, 2 of .* 3"
    )
    self.assertIsNotNone(bad_steps.check(3, metrics(3)))
    self.assertEqual(bad_steps.num_seen, 3)

  @parameterized.parameters(
    (dict(loss=math.nan), "the loss is nan and its gradient's norm 1 at step 7: left"),
    (dict(grad_norm=math.inf), "the loss is 3 and .* norm inf at step 7: left"),
    (dict(loss=math.nan, targets=0), "at step 7, whose batch has no target that count"),
    (dict(), "at step 7, after a mean loss of 2.5: left out, 1 of at most 1"),
  )
  def test_says_why(self, values, line):
    bad_steps = BadSteps(num_allowed=1, num_seen=0, last_saved=4)
    self.assertRegex(bad_steps.check(7, metrics(1, **values)), line)

  @parameterized.parameters((None, "none yet"), (4, "step 4"))
  def test_one_too_many_ends_the_run_and_says_where_it_can_go_on(self, saved, where):
    bad_steps = BadSteps(num_allowed=0, num_seen=0, last_saved=saved)
    message = f"as train.max_skipped_steps is 0; last good checkpoint: {where}$"
    with self.assertRaisesRegex(RunError, message):
      bad_steps.check(7, metrics(1))
