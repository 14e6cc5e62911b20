"""Several processes as one run: they meet, watch each other, and leave together.

With one process nothing of this happens: no service, no thread, no connection.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import itertools
import os
import socket
import sys
import threading
import time
import traceback
from typing import NoReturn

import jax

# What detects clusters, and the coordination service's client, have no public name.
from jax._src import clusters, distributed
from jax.experimental import multihost_utils
import numpy as np

from gpt2_flax.errors import InputError, RunError

MEET_SECONDS = 300  # until all must have come
BEAT_SECONDS = 2  # between signs of life
SILENT_SECONDS = 20  # without one, and a process counts as dead
_FLAGS = ("coordinator", "num_processes", "process_id")
_ending = threading.Lock()  # taken once and kept: the last line is said once


@dataclasses.dataclass(frozen=True)
class Place:
  """Which process this is, of how many.

  Attributes:
    coordinator: HOST:PORT where process 0 listens.
    num_processes: how many there are.
    process_id: 0 to num_processes - 1.
    local_device_ids: the devices of this machine that are its own; None for all.
  """

  coordinator: str
  num_processes: int
  process_id: int
  local_device_ids: list[int] | None = None


def find_place(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Place | None:
  """By the flags, else by the cluster's environment; None for a process on its own.

  jax knows the environments: SLURM, Open MPI, TPU pods, Kubernetes jobs.

  Raises:
    InputError: the flags do not fit together, or the environment cannot be read.
  """
  given = dict(zip(_FLAGS, (coordinator, num_processes, process_id), strict=True))
  missing = [f"--{name}" for name, value in given.items() if value is None]
  if missing:
    if len(missing) < len(_FLAGS):
      raise InputError(
        f"{' and '.join(missing)} missing: --coordinator, --num_processes and"
        " --process_id go together"
      )
    place = _place_in_cluster()
  else:
    place = Place(**given)
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
      raise InputError(f"--coordinator={coordinator}: must be HOST:PORT")
    if num_processes < 1:
      raise InputError(f"--num_processes={num_processes}: must be at least 1")
    if not 0 <= process_id < num_processes:
      raise InputError(f"--process_id={process_id}: must be 0 to {num_processes - 1}")
  return place if place and place.num_processes > 1 else None


def _place_in_cluster() -> Place | None:
  environment = os.environ
  try:
    values = clusters.ClusterEnv.auto_detect_unset_distributed_params(
      None, None, None, None, None, MEET_SECONDS
    )
  except Exception as error:  # whatever a cluster's own package raises
    # Every pod of Kubernetes looks like a cluster; one that is no part of an indexed
    # job is on its own.
    if "KUBERNETES_SERVICE_HOST" in environment and (
      "JOB_COMPLETION_INDEX" not in environment
    ):
      return None
    raise InputError(
      f"which process of the cluster this is cannot be found out ({error}): give"
      " --coordinator, --num_processes and --process_id"
    ) from error
  return Place(*values) if values[0] else None


@contextlib.contextmanager
def joined(place: Place | None) -> Iterator[None]:
  """While entered, this process is one of several: `jax.devices()` are those of all.

  It must come before anything that makes jax look for devices. Only process 0 speaks
  on standard output. When a process dies, the others end within a minute with one line
  and exit code 1; and whoever leaves by an exception takes no farewell.
  """
  if place is None:
    yield
    return
  leaving = threading.Event()
  _meet(place, leaving)
  try:
    with contextlib.ExitStack() as stack:
      if place.process_id > 0:
        nowhere = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(contextlib.redirect_stdout(nowhere))
      yield
      _client().wait_at_barrier("the end", 1000 * MEET_SECONDS)
  except BaseException as error:
    _leave_at_once(error, place)
  leaving.set()
  jax.distributed.shutdown()


def everywhere(holds: bool) -> bool:
  """Whether it holds in each process; to be asked by all of them."""
  if jax.process_count() == 1:
    return holds
  with jax.transfer_guard("allow"):
    return bool(multihost_utils.process_allgather(np.array(holds)).all())


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
  """What fails in one process fails in all; to be entered by all of them.

  Raises:
    RunError: it was another one.
  """
  try:
    yield
  except Exception:
    everywhere(False)
    raise
  if not everywhere(True):
    raise RunError("another process could not go on: its own output says why")


def _client() -> jax._src.lib._jax.DistributedRuntimeClient:
  return distributed.global_state.client


def _end(message: str) -> NoReturn:
  """One line, exit code 1, from whichever thread and whatever the others wait for."""
  _ending.acquire()
  print(f"error: {message}", file=sys.stderr, flush=True)
  os._exit(1)


def _end_without(processes: str) -> NoReturn:
  _end(
    f"{processes} does not answer: dead, or cut off. Start all again, and the run goes"
    " on from its last checkpoint"
  )


def _leave_at_once(error: BaseException, place: Place) -> NoReturn:
  """Ends with what was raised, without waiting for the others to end as well."""
  if isinstance(error, SystemExit):  # its line is out
    code = error.code if isinstance(error.code, int) else 1
  else:
    # Perhaps only the echo of a death elsewhere: then the watch ends this process here.
    time.sleep(SILENT_SECONDS + 2 * BEAT_SECONDS)
    traceback.print_exception(error)
    code = 1
  if place.process_id == 0:
    time.sleep(BEAT_SECONDS)  # others that end for the same reason can say so
  _ending.acquire()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _meet(place: Place, leaving: threading.Event) -> None:
  """Waits for all to come, and begins to watch them."""
  too_late = threading.Timer(
    MEET_SECONDS,
    _end,
    [
      f"{place.num_processes} processes did not meet at {place.coordinator} within"
      f" {MEET_SECONDS} s: is each of them started, and told the same place?"
    ],
  )
  too_late.daemon = True
  too_late.start()
  address, watching = place.coordinator, threading.Event()
  if place.process_id > 0:
    address = _door(place.coordinator, watching, leaving)
  # SIGTERM is ours to handle: training.signals
  jax.config.update("jax_enable_preemption_service", False)
  jax.distributed.initialize(
    address,
    place.num_processes,
    place.process_id,
    place.local_device_ids,
    cluster_detection_method="deactivate",
    # jax ends a process with a stack dump where it loses patience, so it gets more
    # patience than we have
    initialization_timeout=2 * MEET_SECONDS,
    heartbeat_timeout_seconds=2 * SILENT_SECONDS,
  )
  too_late.cancel()
  watching.set()
  threading.Thread(target=_watch, args=(place, leaving), daemon=True).start()


def _watch(place: Place, leaving: threading.Event) -> None:
  """Gives a sign of life and looks for those of the others, beat by beat."""
  now = time.monotonic()
  changed = {str(i): (None, now) for i in range(place.num_processes)}
  for beat in itertools.count():
    try:
      _client().key_value_set(f"alive/{place.process_id}", str(beat), True)
      beats = _client().key_value_dir_get("alive/")
    except Exception:
      if leaving.wait(BEAT_SECONDS):
        return
      _end_without("process 0")
    now = time.monotonic()
    for key, value in beats:
      name = key.rpartition("/")[2]
      if changed[name][0] != value:
        changed[name] = (value, now)
    silent = [i for i, (_, since) in changed.items() if now - since > SILENT_SECONDS]
    if silent:
      if place.process_id == 0:
        time.sleep(2 * BEAT_SECONDS)  # the others find out from what it holds
      _end_without(f"process {', '.join(silent)}")
    if leaving.wait(BEAT_SECONDS):
      return


def _door(coordinator: str, watching: threading.Event, leaving: threading.Event) -> str:
  """A local address that leads to the coordinator.

  jax's client ends its process with a stack dump the moment its connection breaks, and
  cannot be told otherwise. Led through here it never sees that: we do, and end it with
  one line.
  """
  host, _, port = coordinator.rpartition(":")
  target = host.strip("[]"), int(port)
  door = socket.create_server(("127.0.0.1", 0))

  def forward(source: socket.socket, sink: socket.socket) -> None:
    while True:
      try:
        data = source.recv(2**16)
        sink.sendall(data)
      except TimeoutError:
        if not watching.is_set():  # nothing is said while the last ones are awaited
          continue
        return
      except OSError:
        return
      if not data:
        return

  def outward(near: socket.socket, far: socket.socket, closed: threading.Event) -> None:
    forward(near, far)
    closed.set()
    far.close()

  def inward(near: socket.socket, far: socket.socket, closed: threading.Event) -> None:
    forward(far, near)
    if not (closed.is_set() or leaving.is_set()):
      _end_without("process 0")
    near.close()

  def serve() -> None:
    while True:
      near, _ = door.accept()
      far = _connect(target)
      far.settimeout(SILENT_SECONDS)
      closed = threading.Event()
      for way in (outward, inward):
        threading.Thread(target=way, args=(near, far, closed), daemon=True).start()

  _connect(target).close()  # process 0 may be slower than this one
  threading.Thread(target=serve, daemon=True).start()
  return f"127.0.0.1:{door.getsockname()[1]}"


def _connect(target: tuple[str, int]) -> socket.socket:
  """Tries until it works, or the time to meet is over."""
  while True:
    try:
      return socket.create_connection(target, timeout=SILENT_SECONDS)
    except OSError:
      time.sleep(0.2)
