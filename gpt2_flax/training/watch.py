"""When one of several processes dies or stalls, the others end too, and say why.

Without this they would wait for it in the next collective, until jax's coordination
service ends them with a dump of its C++ stack, which does not say who died. The
service can call a Python function instead, but that ends the process too: jax cannot
convert the function's argument (`std::bad_cast`, jax 0.10). So each process watches the
others itself, and finds out sooner.
"""

import contextlib
import faulthandler
import itertools
import os
import socket
import sys
import threading
import time
from typing import Any, NoReturn

BEAT_SECONDS = 2  # between signs of life
SILENT_SECONDS = 20  # without a sign of life, after which a process counts as dead
_said = threading.Lock()  # never released: only one thread writes the last line


def end(message: str, with_stacks: bool = False) -> NoReturn:
  """Ends with one line and exit code 1, from any thread, whatever others wait for.

  Args:
    with_stacks: the stack of each thread follows the line.
  """
  _said.acquire()
  print(f"error: {message}", file=sys.stderr, flush=True)
  if with_stacks:
    faulthandler.dump_traceback()
  os._exit(1)


def leave(code: int) -> NoReturn:
  """Ends with a code, and does not wait for the other processes."""
  _said.acquire()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _end_without(processes: str) -> NoReturn:
  end(
    f"process {processes} does not answer: dead, or cut off. Start all again, and the"
    " run goes on from its last checkpoint",
    with_stacks=True,
  )


class Watch:
  """Gives a sign of life and looks for those of the others, beat by beat.

  It has threads of its own, which neither a compilation nor a collective holds up.

  Attributes:
    leaving: to be set before this process disconnects from the others.
  """

  def __init__(self, process_id: int, num_processes: int):
    self.leaving = threading.Event()
    self._process_id, self._num_processes = process_id, num_processes
    self._beating = False

  def start(self, client: Any) -> None:
    """Begins, once all processes are there.

    Args:
      client: of jax's coordination service, whose keys all processes can read.
    """
    self._heard = time.monotonic()
    self._beating = True
    threading.Thread(target=self._beat, args=(client,), daemon=True).start()

  def _beat(self, client: Any) -> None:
    last = {str(i): (None, self._heard) for i in range(self._num_processes)}
    for number in itertools.count():
      try:
        client.key_value_set(f"alive/{self._process_id}", str(number), True)
        beats = client.key_value_dir_get("alive/")
      except Exception:  # whatever the client raises when it is cut off
        if self.leaving.wait(BEAT_SECONDS):
          return
        _end_without("0")
      now = time.monotonic()
      for key, beat in beats:
        name = key.removeprefix("alive/")
        if last[name][0] != beat:
          last[name] = (beat, now)
      silent = [name for name, (_, at) in last.items() if now - at > SILENT_SECONDS]
      if silent:
        if self._process_id == 0:  # it holds the keys, which the others must still read
          time.sleep(2 * BEAT_SECONDS)
        _end_without(", ".join(silent))
      if self.leaving.wait(BEAT_SECONDS):
        return

  def proxy(self, coordinator: str) -> str:
    """A local address that forwards to process 0, which is at `coordinator`.

    jax's client ends its process the moment its connection breaks. Its connection to
    this proxy does not break: the proxy sees that process 0 is gone, and ends the
    process itself, with a line that says so.
    """
    host, _, port = coordinator.rpartition(":")
    target = host.strip("[]"), int(port)
    _connect(target).close()  # process 0 may be slower to start than this one
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=self._serve, args=(server, target), daemon=True).start()
    return f"127.0.0.1:{server.getsockname()[1]}"

  def _serve(self, server: socket.socket, target: tuple[str, int]) -> None:
    while True:
      near, _ = server.accept()
      far = _connect(target)
      closed = threading.Event()
      for way in (self._outward, self._inward):
        threading.Thread(target=way, args=(near, far, closed), daemon=True).start()

  def _outward(
    self, near: socket.socket, far: socket.socket, closed: threading.Event
  ) -> None:
    with contextlib.suppress(OSError):  # if `far` breaks, `_inward` sees it too
      while data := near.recv(2**16):
        far.sendall(data)
      closed.set()
    far.close()

  def _inward(
    self, near: socket.socket, far: socket.socket, closed: threading.Event
  ) -> None:
    while data := self._receive(far):
      try:
        near.sendall(data)
      except OSError:
        closed.set()
    if not (closed.is_set() or self.leaving.is_set()):
      _end_without("0")
    near.close()

  def _receive(self, far: socket.socket) -> bytes:
    """What comes from process 0; empty when it is gone, or silent for too long."""
    while True:
      try:
        data = far.recv(2**16)
        self._heard = time.monotonic()
        return data
      except TimeoutError:
        if self._beating and time.monotonic() - self._heard > SILENT_SECONDS:
          return b""
      except OSError:
        return b""


def _connect(target: tuple[str, int]) -> socket.socket:
  """Tries until it works; the timer in `processes._meet` ends the process in time."""
  while True:
    try:
      return socket.create_connection(target, timeout=SILENT_SECONDS)
    except OSError:
      time.sleep(0.2)
