"""How a run uses a CPU: what JAX and XLA are told of it before they begin."""

import os

import jax

from gpt2_flax.training.config import ExperimentConfig, MeshConfig

# XLA ends the process where a device waits for another for 40 seconds. That a machine
# is busy, or slept meanwhile, is no reason to.
PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds=1000000"
# XLA begins whatever it can as soon as it can. So what is to be computed a second time
# is computed at once, and kept. This has it think of memory first.
MEMORY_FIRST = "--xla_cpu_enable_concurrency_optimized_scheduler=false"


def set_up(*configs: ExperimentConfig, alone: bool = True) -> None:
  """Prepares for the runs of this process, before JAX first needs a device.

  A mesh gets as many CPU devices as it asks for, each a thread. If the environment says
  their number, that holds: JAX_NUM_CPU_DEVICES, or
  --xla_force_host_platform_device_count in XLA_FLAGS. Runs on an accelerator have
  nothing of it.

  Args:
    alone: this is no process of several, of which each has one device.
  """
  flags = os.environ.get("XLA_FLAGS", "")
  if any(config.model.remat != "none" for config in configs):
    flags = f"{MEMORY_FIRST} {flags}"
  is_said = "xla_force_host_platform_device_count" in flags
  is_said |= jax.config.values["jax_num_cpu_devices"] >= 0
  number = max(_num_devices(config.mesh) for config in configs)
  if alone and not is_said and number > 1:
    jax.config.update("jax_num_cpu_devices", number)
    flags = f"{PATIENCE} {flags}"
    # With no more threads than devices, XLA's threads may all wait for one another.
    os.environ.setdefault("NPROC", str(2 * number + 2))
  os.environ["XLA_FLAGS"] = flags


def _num_devices(mesh: MeshConfig) -> int:
  data = max(1, mesh.data)  # -1: whatever there is, and there is one
  return data * mesh.fsdp * mesh.tensor
