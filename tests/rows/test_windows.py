"""Each row has its own window, and its own end."""

import chex
import numpy as np

from gpt2_flax.rows.windows import Windows


class WindowsTest(chex.TestCase):
  def make(self, *texts, slides, stop_ids=()):
    rows = [list(text) for text in texts]
    return Windows(rows, 7, stop_ids=stop_ids, slides=slides)

  def test_goes_on_until_the_shortest_is_full(self):
    windows = self.make([1], [1, 2, 3, 4, 5], slides=False)
    _, padding, room = windows.reread()
    self.assertEqual((padding.tolist(), room), ([6, 2], 6))
    made = np.array([[8, 8, 8], [8, 8, -1]])
    self.assertEqual(windows.append(made), [[8, 8, 8], [8, 8]])
    self.assertEqual(windows.ended, [False, True])
    windows.append(np.array([[8, 8, 8], [-1] * 3]))
    self.assertEqual(windows.ended, [True, True])

  def test_slides_where_it_is_full_and_nowhere_else(self):
    windows = self.make([1, 2, 3], [1, 2, 3, 4, 5], slides=True)
    self.assertEqual(windows.reread()[2], 2)
    windows.append(np.array([[8, 9], [6, 7]]))
    self.assertEqual(windows.ended, [False, False])
    padded, padding, room = windows.reread()
    self.assertEqual(padded[0, padding[0] :].tolist(), [1, 2, 3, 8, 9])
    self.assertEqual(padded[1, padding[1] :].tolist(), [4, 5, 6, 7])
    self.assertEqual(room, 2)

  def test_a_row_that_has_ended_makes_no_other_slide(self):
    windows = self.make([1], [1, 2, 3, 4, 5], slides=True, stop_ids=[6])
    windows.append(np.array([[8, 9], [6, -1]]))
    self.assertEqual(windows.ended, [False, True])
    self.assertEqual(windows.reread()[2], 7 - 3)

  def test_a_stop_token_in_the_prompt_ends_nothing(self):
    windows = self.make([6], slides=False, stop_ids=[6, 5])
    windows.reread()
    self.assertEqual(windows.ended, [False])
    windows.append(np.array([[3]]))
    self.assertEqual(windows.ended, [False])
    windows.append(np.array([[5]]))
    self.assertEqual(windows.ended, [True])
