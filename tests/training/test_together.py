"""In which order members of one program are saved; their numbers: test_sweep.py."""

from unittest import mock

import chex

from gpt2_flax.training.bad_steps import DivergedError
from gpt2_flax.training.together import _Members


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
