"""Signals are noted once there is something to save; a second one ends at once."""

import os
import signal

import chex

from gpt2_flax.training.signals import StopSignals

NUMBERS = (signal.SIGTERM, signal.SIGINT)


def handlers() -> list:
  return [signal.getsignal(number) for number in NUMBERS]


class StopSignalsTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    for number in NUMBERS:
      self.addCleanup(signal.signal, number, signal.getsignal(number))
      signal.signal(number, signal.SIG_IGN)
    self.before = handlers()

  def test_noted_from_the_first_step_on(self):
    for number in NUMBERS:
      with self.subTest(number=number), StopSignals() as stop:
        self.assertIsNone(stop.agreed())
        self.assertEqual(handlers(), self.before)  # nothing to save yet
        self.assertIsNone(stop.agreed())
        os.kill(os.getpid(), number)
        self.assertEqual(stop.agreed(), number)
        self.assertEqual(stop.agreed_on, number)
        # the next one, of whichever kind, ends the process on the spot
        self.assertEqual(handlers(), [signal.SIG_DFL] * 2)
      self.assertEqual(handlers(), self.before)

  def test_nothing_is_left_behind_without_a_step(self):
    with StopSignals() as stop:
      stop.agreed()
    self.assertEqual(handlers(), self.before)
