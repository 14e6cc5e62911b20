"""Being asked to stop: finish the step, save, leave. Asked twice: leave at once."""

import os
import signal
from types import FrameType


class StopSignals:
  """While entered, SIGTERM and SIGINT set `received` instead of ending the process.

  A second signal ends it immediately, as would SIGKILL; checkpoints are atomic.
  """

  def __init__(self):
    self.received: signal.Signals | None = None
    self._before = {}

  def __enter__(self) -> "StopSignals":
    for number in (signal.SIGTERM, signal.SIGINT):
      self._before[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _handle(self, number: int, frame: FrameType | None) -> None:
    del frame
    if self.received:
      os._exit(128 + number)
    self.received = signal.Signals(number)
