"""What a training step of GPT-2 XL would need on many devices, found by compiling it.

    python -m benchmarks.scaling                     8, 64 and 256 devices
    python -m benchmarks.scaling --devices=8 --size=small

The step is the one that train.py runs, compiled for virtual CPU devices with no array
made, so any machine will do. For each mesh it prints a row of markdown:

  - Memory of one device by the compiler's own count: the state, what a step needs
    besides, and the largest sum.
  - What one device sends in a step, counted in the compiled program by
    `benchmarks.collectives`.
  - An estimate of a step's time on H100s: at least the longer of computing and sending,
    where the one hides the other in full; at most their sum. It is arithmetic on the
    constants below, not a measurement.

`docs/scaling.md` says how the figures differ from a GPU's.
"""

from collections.abc import Iterator
import json
import os
import subprocess
import sys
import time
from typing import Any, NamedTuple

from absl import app, flags, logging
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.collectives import Program, ring_speed, Transfer
from gpt2_flax import GPT2, GPT2Config
from gpt2_flax.training import config as config_lib
from gpt2_flax.training.flops import flops_per_token, PEAK_FLOPS
from gpt2_flax.training.mesh import batch_sharding, make_mesh, spread_over
from gpt2_flax.training.optimizer import learning_rate_schedule, make_optimizer
from gpt2_flax.training.step import abstract_state, make_train_step

_DEVICES = flags.DEFINE_list("devices", ["8", "64", "256"], "How many; see CASES.")
_SIZE = flags.DEFINE_string("size", "xl", "As published.")
_WORKER = flags.DEFINE_integer("worker", 0, "Internal: devices of this process.")

# An H100 SXM server: eight GPUs, each with its own network card.
PEAK = PEAK_FLOPS["NVIDIA H100 80GB HBM3"]  # FLOP/s
MFU = 0.5  # assumed
NODE = 8  # GPUs
NVLINK = 450e9  # bytes/s each GPU sends to others of its node
NETWORK = 400e9 / 8  # bytes/s each GPU's card sends to other nodes
# remat=full computes the forward pass twice, which MFU does not count as work.
WORK = {"none": 1, "dots": 1, "full": 4 / 3}


class Case(NamedTuple):
  """A mesh, and windows of 1,024 tokens on a device."""

  data: int
  fsdp: int
  windows: int = 8
  remat: str = "dots"


CASES = {
  8: (Case(8, 1), Case(1, 8), Case(2, 4)),
  64: (Case(8, 8), Case(1, 64), Case(8, 8, remat="full")),
  256: (Case(32, 8), Case(16, 16), Case(32, 8, windows=2)),
}
flags.register_validator(
  "devices", lambda counts: {int(count) for count in counts} <= set(CASES), "see CASES"
)
COLUMNS = (
  "devices",
  "mesh",
  "windows a device",
  "remat",
  "tokens a step",
  "params + optimizer GiB",
  "temporary GiB",
  "peak GiB",
  "all-gather GB (arrays)",
  "reduce-scatter GB (arrays)",
  "all-reduce GB (arrays)",
  "other GB (arrays)",
  "between nodes GB",
  "compute s",
  "send s",
  "step s",
  "compiled in s",
)


def bytes_per_second(group: np.ndarray) -> float:
  """How fast each of a group sends."""
  return ring_speed(group, NODE, NVLINK, NETWORK)


def bytes_of(tree: Any) -> int:
  """On one device."""
  return sum(
    np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=int) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def sent(transfers: list[Transfer]) -> str:
  """GB, and how many arrays."""
  gigabytes = sum(t.bytes_sent for t in transfers) / 1e9
  return f"{gigabytes:.2f} ({sum(t.count for t in transfers):,})"


def row(case: Case) -> list[str]:
  """What COLUMNS say of a case; there must be as many devices as its mesh has."""
  num_devices = case.data * case.fsdp
  batch_size = case.windows * num_devices
  model = GPT2(
    GPT2Config.published(
      _SIZE.value, scan_layers=True, remat=case.remat, dtype="bfloat16"
    )
  )
  settings = config_lib.OptimizerConfig(
    name="adamw",
    learning_rate=6e-4,
    warmup_steps=2000,
    weight_decay=0.1,
    beta1=0.9,
    beta2=0.95,
    max_grad_norm=1.0,
  )
  train = config_lib.TrainConfig(
    num_steps=600_000,
    batch_size=batch_size,
    accumulation_steps=1,
    seed=0,
    log_every_steps=10,
    max_skipped_steps=0,
    max_loss_jump=0.0,
  )
  schedule = learning_rate_schedule(settings, train.num_steps)
  optimizer = make_optimizer(settings, schedule)
  mesh = make_mesh(config_lib.MeshConfig(case.data, case.fsdp, tensor=1), train)
  state = abstract_state(model, optimizer, mesh)
  tokens = jax.ShapeDtypeStruct(
    (batch_size, model.config.context_length), jnp.int32, sharding=batch_sharding(mesh)
  )
  began = time.perf_counter()
  with spread_over(mesh):
    train_step = make_train_step(model, optimizer, schedule, state)
    lowered = train_step.lower(state, {"inputs": tokens, "targets": tokens})
    compiled = lowered.compile()
  compile_seconds = time.perf_counter() - began

  memory = compiled.memory_analysis()
  arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
  added = memory.output_size_in_bytes - memory.alias_size_in_bytes
  params, optimizer_state, temporary, peak = (
    f"{size / 2**30:.2f}"
    for size in (
      bytes_of(state.params),
      bytes_of(state.opt_state),
      temporary,
      arguments + added + temporary,
    )
  )
  transfers = list(Program(compiled.as_text()).transfers())
  kinds = ("all-gather", "reduce-scatter", "all-reduce")
  others = [t for t in transfers if t.kind not in kinds]
  outside = [t for t in transfers if bytes_per_second(t.group) < NVLINK]
  seconds = [t.bytes_sent / bytes_per_second(t.group) for t in transfers]
  num_tokens = tokens.size / num_devices
  compute = num_tokens * flops_per_token(model.config) / (PEAK * MFU)
  compute *= WORK[case.remat]
  send = sum(seconds)
  return [
    f"{num_devices}",
    f"data={case.data}, fsdp={case.fsdp}",
    f"{case.windows}",
    case.remat,
    f"{tokens.size:,}",
    f"{params} + {optimizer_state}",
    temporary,
    peak,
    *(sent([t for t in transfers if t.kind == kind]) for kind in kinds),
    sent(others),
    f"{sum(t.bytes_sent for t in outside) / 1e9:.2f}",
    f"{compute:.3f}",
    f"{send:.3f}",
    f"{max(compute, send):.3f} to {compute + send:.3f}",
    f"{compile_seconds:.0f}",
  ]


def rows(num_devices: int) -> Iterator[list[str]]:
  """Those of a process with as many devices, one after the other."""
  virtual = f"--xla_force_host_platform_device_count={num_devices}"
  env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": virtual}
  command = [sys.executable, "-m", "benchmarks.scaling", *sys.argv[1:]]
  command.append(f"--worker={num_devices}")
  with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as worker:
    yield from map(json.loads, worker.stdout)
  if worker.returncode:
    raise subprocess.CalledProcessError(worker.returncode, command)


def main(_) -> None:
  """Prints the table, or the rows of one process."""
  if _WORKER.value:
    for case in CASES[_WORKER.value]:
      print(json.dumps(row(case)), flush=True)
    return
  print(f"GPT-2 {_SIZE.value}, jax {jax.__version__}\n")
  for cells in (COLUMNS, ["---"] * len(COLUMNS)):
    print(f"| {' | '.join(cells)} |")
  for num_devices in map(int, _DEVICES.value):
    for cells in rows(num_devices):
      print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
  logging.set_verbosity(logging.WARNING)
  app.run(main)
