"""Several processes as one run: they meet, watch each other, and leave together.

With one process nothing of this happens: no service, no thread, no connection.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import os
import threading
import time
import traceback
from typing import Any, NoReturn

import jax

# What detects clusters, and the coordination service's client, have no public name.
from jax._src import clusters, distributed
from jax.experimental import multihost_utils
import numpy as np

from gpt2_flax.errors import InputError, RunError
from gpt2_flax.training import watch
from gpt2_flax.training.watch import Watch

MEET_SECONDS = 300  # until all must have come
_FLAGS = ("coordinator", "num_processes", "process_id")


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
  if coordinator is None or num_processes is None or process_id is None:
    given = (coordinator, num_processes, process_id)
    flags = zip(_FLAGS, given, strict=True)
    missing = [f"--{name}" for name, value in flags if value is None]
    if len(missing) < len(_FLAGS):
      raise InputError(
        f"{' and '.join(missing)} missing: --coordinator, --num_processes and"
        " --process_id go together"
      )
    place = _place_in_cluster()
  else:
    place = Place(coordinator, num_processes, process_id)
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
  if environment.get("SLURM_STEP_NUM_TASKS") == "1" and (
    "OMPI_COMM_WORLD_SIZE" not in environment
  ):
    return None  # a shell in an allocation, where SLURM_NTASKS counts what may come
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
  coordinator, num_processes, process_id, own = values
  if coordinator is None or num_processes is None or process_id is None:
    return None
  return Place(coordinator, num_processes, process_id, None if own is None else [*own])


@contextlib.contextmanager
def joined(place: Place | None) -> Iterator[None]:
  """While entered, this process is one of several: `jax.devices()` are those of all.

  It must come before anything that makes jax look for devices. Only process 0 speaks
  on standard output. When a process dies or stalls, the others end within a minute with
  one line, what they were at, and exit code 1; and whoever leaves by an exception takes
  no farewell.
  """
  if place is None:
    yield
    return
  watching = _meet(place)
  try:
    with contextlib.ExitStack() as stack:
      if place.process_id > 0:
        nowhere = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(contextlib.redirect_stdout(nowhere))
      yield
      _client().wait_at_barrier("the end", 1000 * MEET_SECONDS)
  except BaseException as error:
    _leave_at_once(error, place)
  watching.leaving.set()
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


def _meet(place: Place) -> Watch:
  """Waits for all to come, and begins to watch them."""
  too_late = threading.Timer(
    MEET_SECONDS,
    watch.end,
    [
      f"{place.num_processes} processes did not meet at {place.coordinator} within"
      f" {MEET_SECONDS} s: is each of them started, and told the same place?"
    ],
  )
  too_late.daemon = True
  too_late.start()
  watching = Watch(place.process_id, place.num_processes)
  address = place.coordinator
  if place.process_id > 0:
    address = watching.door(address)
  # SIGTERM is not jax's to handle but that of training.signals
  jax.config.update("jax_enable_preemption_service", False)
  jax.distributed.initialize(
    address,
    place.num_processes,
    place.process_id,
    place.local_device_ids,
    cluster_detection_method="deactivate",
    # Where jax loses patience it dumps its stack, so it gets more than we have. A sign
    # of life comes but twice in its time: it may miss one after half of that.
    initialization_timeout=2 * MEET_SECONDS,
    heartbeat_timeout_seconds=4 * watch.SILENT_SECONDS,
  )
  too_late.cancel()
  watching.start(_client())
  return watching


def _client() -> Any:
  return distributed.global_state.client


def _leave_at_once(error: BaseException, place: Place) -> NoReturn:
  """Ends with what was raised, without waiting for the others to end as well."""
  if isinstance(error, SystemExit):  # its line is out
    code = error.code if isinstance(error.code, int) else 1
  else:
    # Perhaps only the echo of a death elsewhere: then the watch ends this process here.
    time.sleep(watch.SILENT_SECONDS + 3 * watch.BEAT_SECONDS)
    traceback.print_exception(error)
    code = 1
  if place.process_id == 0:
    time.sleep(watch.BEAT_SECONDS)  # for others that end for the same reason to say so
  watch.leave(code)
