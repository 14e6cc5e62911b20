"""Being asked to stop: finish the step, save, leave. Asked twice: leave at once."""

import os
import signal
from types import FrameType

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from gpt2_flax.training.mesh import put_parts

_largest = jax.jit(jnp.max)


class StopSignals:
  """While entered, SIGTERM and SIGINT are noted instead of ending the process.

  A second signal ends it immediately, as would SIGKILL; checkpoints are atomic.

  Attributes:
    received: what this process was sent, or None.
    agreed_on: what all processes know of, or None.
  """

  def __init__(self):
    self.received: signal.Signals | None = None
    self.agreed_on: signal.Signals | None = None
    self._gathered = None
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

  def agreed(self) -> signal.Signals | None:
    """What to stop for; to be asked before each step.

    Several processes get the same answer before the same step: each time they begin to
    gather what they have received, and read what they gathered the time before, for
    which no device has to wait.
    """
    if jax.process_count() == 1:
      self.agreed_on = self.received
      return self.agreed_on
    mesh = Mesh(np.array(jax.devices()), "all")
    mine = np.full(mesh.size, self.received or 0, np.int32)
    of_all = put_parts(mine, NamedSharding(mesh, PartitionSpec("all")))
    before, self._gathered = self._gathered, _largest(of_all)
    if before is not None and (number := int(jax.device_get(before))):
      self.agreed_on = signal.Signals(number)
    return self.agreed_on
