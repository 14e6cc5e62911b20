"""What a person sees of a sweep: how many are done, how long the others take."""

import io
import sys
import time
from unittest import mock

from absl.testing import parameterized
import chex
import tqdm.std

from gpt2_flax.training.progress import SweepProgress


class SweepProgressTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.now, self.told = 100.0, []
    clock = mock.patch.object(time, "perf_counter", side_effect=lambda: self.now)
    self.enterContext(clock)

  def begin(self, costs, done=()):
    progress = SweepProgress(costs, done, self.told.append)
    self.enterContext(progress)
    return progress

  def take(self, member, step, seconds):
    self.now += seconds
    member.update(step, {"loss": "2.5000"})
    member.log(step, {"loss": "2.5000"})
    member.line("not shown")

  def test_time_left_by_what_the_others_cost(self):
    progress = self.begin({"a": 10.0, "b": 30.0, "c": 20.0, "d": 1.0}, done=["d"])
    with progress.of_member("a", num_steps=5, start_step=0) as a:
      self.take(a, 5, seconds=20)
    progress.ended("a", "val/loss 1.0000")
    self.assertEqual(
      self.told.pop(), "2 of 4 members, about 1.7 min left: a  val/loss 1.0000"
    )  # 50 at half a unit a second
    # it goes on from half way, and diverges: what is left of it will not be needed
    with progress.of_member("b", num_steps=10, start_step=5) as b:
      self.take(b, 6, seconds=6)
    progress.ended("b", "diverged: the loss\x1b is nan")
    expected = "3 of 4 members, about 40 s left: b  diverged: the loss\\x1b is nan"
    self.assertEqual(self.told.pop(), expected)
    with progress.of_member("c", num_steps=1, start_step=0) as c:
      self.take(c, 1, seconds=1)
    progress.ended("c", "")
    self.assertEqual(self.told, ["4 of 4 members: c  "])

  def test_what_a_member_has_done_before_costs_nothing(self):
    progress = self.begin({"a": 10.0, "b": 10.0})
    with progress.of_member("a", num_steps=10, start_step=8) as a:
      self.take(a, 9, seconds=1)  # a unit a second; one of a is left, and ten of b
      self.assertIn("about 11 s left", progress._time_left())

  def test_before_any_step_nobody_knows(self):
    progress = self.begin({"a": 10.0, "b": 1.0})
    progress.ended("a", "diverged")
    self.assertEqual(self.told, ["1 of 2 members, time left unknown: a  diverged"])

  @parameterized.parameters(
    (89, "about 89 s left"),
    (90, "about 1.5 min left"),
    (5399, "about 90.0 min left"),
    (5400, "about 1.5 h left"),
  )
  def test_in_units_that_one_can_grasp(self, seconds, text):
    progress = self.begin({"a": 1.0, "b": float(seconds)})
    with progress.of_member("a", num_steps=1, start_step=0) as a:
      self.take(a, 1, seconds=1)
    progress.ended("a", "x")
    self.assertEqual(self.told, [f"1 of 2 members, {text}: a  x"])

  def test_on_a_terminal_a_bar_moves_below_the_lines(self):
    terminal = mock.Mock(wraps=io.StringIO(), encoding="utf-8")
    terminal.isatty.return_value = True
    with (
      mock.patch.object(sys, "stderr", terminal),
      mock.patch.object(tqdm.std, "time", side_effect=lambda: self.now),
    ):
      progress = self.begin({"a": 1.0, "b": 1.0})
      with progress.of_member("a", num_steps=10, start_step=0) as a:
        for step in range(1, 11):
          self.take(a, step, seconds=1)
      progress.ended("a", "done")
      with progress.of_member("b", num_steps=10, start_step=0) as b:
        self.take(b, 5, seconds=5)
    shown = "".join(call.args[0] for call in terminal.write.call_args_list)
    self.assertIn("0 of 2 members |", shown)
    self.assertIn("1 of 2 members |", shown)
    self.assertRegex(shown, "about 19 s left, a 2.5000")
    self.assertRegex(shown, "about 5 s left, b 2.5000")  # it moves between members too
    self.assertEqual(self.told, ["1 of 2 members, about 10 s left: a  done"])
