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

MEET_SECONDS = 300  # in which all processes must come
_FLAGS = ("coordinator", "num_processes", "process_id")


@dataclasses.dataclass(frozen=True)
class Process:
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


def find_process(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Process | None:
  """This process by the flags, else by the cluster's environment; None if it is alone.

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
    process = _process_in_cluster()
  else:
    process = Process(coordinator, num_processes, process_id)
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
      raise InputError(f"--coordinator={coordinator}: must be HOST:PORT")
    if num_processes < 1:
      raise InputError(f"--num_processes={num_processes}: must be at least 1")
    if not 0 <= process_id < num_processes:
      raise InputError(f"--process_id={process_id}: must be 0 to {num_processes - 1}")
  return process if process and process.num_processes > 1 else None


def _process_in_cluster() -> Process | None:
  environment = os.environ
  if environment.get("SLURM_STEP_NUM_TASKS") == "1" and (
    "OMPI_COMM_WORLD_SIZE" not in environment
  ):
    return None  # a shell in an allocation, where SLURM_NTASKS is how many may start
  try:
    values = clusters.ClusterEnv.auto_detect_unset_distributed_params(
      None, None, None, None, None, MEET_SECONDS
    )
  except Exception as error:  # whatever a cluster's own package raises
    # Every pod of Kubernetes looks like a cluster. A pod outside of an indexed job is
    # alone.
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
  return Process(
    coordinator, num_processes, process_id, None if own is None else [*own]
  )


@contextlib.contextmanager
def joined(process: Process | None) -> Iterator[None]:
  """While entered, this process is one of several: `jax.devices()` are those of all.

  Enter it before anything that makes jax look for devices. Only process 0 writes to
  standard output. When a process dies or stalls, the others end within a minute: with
  one line, the stacks of their threads, and exit code 1. A process that is left by an
  exception ends without waiting for the others.
  """
  if process is None:
    yield
    return
  watching = _meet(process)
  try:
    with contextlib.ExitStack() as stack:
      if process.process_id > 0:
        nowhere = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(contextlib.redirect_stdout(nowhere))
      yield
      _client().wait_at_barrier("the end", 1000 * MEET_SECONDS)
  except BaseException as error:
    _leave_at_once(error, process)
  watching.leaving.set()
  jax.distributed.shutdown()


def everywhere(holds: bool) -> bool:
  """Whether something holds in every process; each of them must call this."""
  if jax.process_count() == 1:
    return holds
  with jax.transfer_guard("allow"):
    return bool(multihost_utils.process_allgather(np.array(holds)).all())


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
  """What fails in one process fails in all; each of them must enter this.

  Raises:
    RunError: another process failed.
  """
  try:
    yield
  except Exception:
    everywhere(False)
    raise
  if not everywhere(True):
    raise RunError("another process could not go on: its own output says why")


def _meet(process: Process) -> Watch:
  """Waits for all to come, and begins to watch them."""
  too_late = threading.Timer(
    MEET_SECONDS,
    watch.end,
    [
      f"{process.num_processes} processes did not meet at {process.coordinator} within"
      f" {MEET_SECONDS} s: is each of them started, and told the same address?"
    ],
  )
  too_late.daemon = True
  too_late.start()
  watching = Watch(process.process_id, process.num_processes)
  address = process.coordinator
  if process.process_id > 0:
    address = watching.proxy(address)
  # training.signals handles SIGTERM, not jax
  jax.config.update("jax_enable_preemption_service", False)
  jax.distributed.initialize(
    address,
    process.num_processes,
    process.process_id,
    process.local_device_ids,
    cluster_detection_method="deactivate",
    # A timeout of jax ends with a dump of its stack, so ours must come first. jax gives
    # only two signs of life within its timeout, and may count half of it as silence.
    initialization_timeout=2 * MEET_SECONDS,
    heartbeat_timeout_seconds=4 * watch.SILENT_SECONDS,
  )
  too_late.cancel()
  watching.start(_client())
  return watching


def _client() -> Any:
  return distributed.global_state.client


def _leave_at_once(error: BaseException, process: Process) -> NoReturn:
  """Ends with what was raised, without waiting for the others to end as well."""
  if isinstance(error, SystemExit):  # its line is printed already
    code = error.code if isinstance(error.code, int) else 1
  else:
    # The death of another process may be the cause. Then the watch ends this one here.
    time.sleep(watch.SILENT_SECONDS + 3 * watch.BEAT_SECONDS)
    traceback.print_exception(error)
    code = 1
  if process.process_id == 0:
    time.sleep(watch.BEAT_SECONDS)  # others that end for the same reason say so first
  watch.leave(code)
