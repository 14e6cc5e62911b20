"""Being asked to stop: finish the step, save, leave. Asked twice: leave at once."""

import signal
from types import FrameType

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from gpt2_flax.training.mesh import put_parts

_largest = jax.jit(jnp.max)


class StopSignals:
  """While entered, and once a step has been taken, SIGTERM and SIGINT are noted.

  Before the first step there is nothing to save, so their handlers stay as they were.
  A second signal ends the process at once, as SIGKILL would: checkpoints are atomic.

  Attributes:
    received: the signal that this process was sent, or None.
    agreed_on: the signal that all processes know of, or None.
  """

  def __init__(self):
    self.received: signal.Signals | None = None
    self.agreed_on: signal.Signals | None = None
    self._gathered = None
    self._num_asked = 0
    self._before = {}

  def __enter__(self) -> "StopSignals":
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _note(self, number: int, frame: FrameType | None) -> None:
    del frame
    self.received = signal.Signals(number)
    for number in self._before:
      signal.signal(number, signal.SIG_DFL)

  def agreed(self) -> signal.Signals | None:
    """The signal to stop for; to be asked before each step.

    Several processes get the same answer before the same step. Each call begins to
    gather the signals received, and reads what the call before has gathered, so no
    device has to wait.
    """
    self._num_asked += 1
    if self._num_asked == 2:  # a step has been taken
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._note)
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
