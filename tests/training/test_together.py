"""When members of one program are saved, and go on; their numbers: test_sweep.py."""

from types import SimpleNamespace
from unittest import mock

from absl.testing import parameterized
import chex

from gpt2_flax.training.bad_steps import DivergedError
from gpt2_flax.training.together import _Members, _restore


class MembersTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.all = mock.Mock()
    self.ended = []
    runs = {0: self.all.a, 3: self.all.b}
    self.members = _Members(runs, lambda i, how: self.ended.append((i, how)))

  def names(self):
    called = [call[0] for call in self.all.mock_calls]
    self.all.reset_mock()
    return called

  def test_nobody_is_saved_or_done_before_all_are_safe_at_the_save_before(self):
    waits = ["a.checkpoints.wait", "b.checkpoints.wait"]
    self.members.tend(5, {0: "state of a", 3: "state of b"})
    self.assertEqual(self.names(), [*waits, "a.tend", "b.tend"])
    self.members.finish(5, {0: "state of a", 3: "state of b"}, mock.Mock())
    self.assertEqual(self.names(), [*waits, "a.finish", "b.finish"])
    self.assertEqual([i for i, _ in self.ended], [0, 3])

  def test_who_has_diverged_is_left_as_it_is(self):
    error = DivergedError("nan")
    self.all.a.tend.side_effect = error
    self.members.tend(5, {0: 1, 3: 2})
    self.assertEqual(self.ended, [(0, error)])
    self.assertFalse(self.members.all_diverged)
    self.all.reset_mock()
    self.members.tend(10, {0: 1, 3: 2})
    self.members.finish(10, {0: 1, 3: 2}, mock.Mock())
    self.all.a.tend.assert_not_called()
    self.all.a.finish.assert_not_called()
    self.all.b.tend.assert_called_once_with(10, 2)
    self.all.b.tend.side_effect = error
    self.members.tend(15, {0: 1, 3: 2})
    self.assertTrue(self.members.all_diverged)


class Kept:
  """A run with checkpoints of these steps."""

  def __init__(self, *steps):
    self.steps, self.checkpoints = [*steps], self

  def restore(self, abstract):
    del abstract
    return SimpleNamespace(step=self.steps[-1]) if self.steps else None

  def drop_after(self, step):
    self.steps = [kept for kept in self.steps if kept <= step]


class RestoreTest(chex.TestCase):
  @parameterized.parameters(
    (((5, 10), (5, 10)), 10),
    (((5,), (5, 10)), 5),
    (((10, 15), (5, 10)), 10),
    (((), (5,)), None),
    (((), ()), None),
  )
  def test_all_go_on_from_the_last_step_that_all_have(self, kept, step):
    runs = {number: Kept(*steps) for number, steps in zip((0, 3), kept, strict=True)}
    found = _restore(runs, None)
    if step is None:
      self.assertIsNone(found)
      self.assertEqual([run.steps for run in runs.values()], [[], []])
    else:
      self.assertEqual(
        {i: state.step for i, state in found.items()}, {0: step, 3: step}
      )
