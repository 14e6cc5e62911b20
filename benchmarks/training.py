"""A training step on CPUs: ours, the same by hand, nanoGPT's.

    python -m benchmarks.training --nanogpt=DIR      needs torch
    python -m benchmarks.training                    without nanoGPT

The shape of nanoGPT's command for a CPU: 4 layers, 4 heads, 128 wide, 64 tokens, 65
characters, batches of 12; AdamW, gradients clipped, no dropout, float32. "ours" is the
step as train.py runs it, "muon" the same with Muon, "split" with a device for each core
(config.mesh.data as large), "hand" is by_hand.py; "eager" and "compiled" are nanoGPT's
model.py and optimizer, called as its train.py does, with biases as ours has.
"""

import contextlib
import os
import statistics
import sys
import time

from absl import app, flags, logging
import numpy as np

from benchmarks import turns

_NANOGPT = flags.DEFINE_string("nanogpt", None, "Where nanoGPT's model.py lies.")
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Turns that each takes.")
_STEPS = flags.DEFINE_integer("steps", 20, "Steps in a turn.")
_CONTENDER = flags.DEFINE_string("contender", None, "Internal: who this process is.")

BATCH_SIZE = 12
SHAPE = dict(vocab_size=65, context_length=64, num_layers=4, num_heads=4, embed_dim=128)
OPTIMIZER = dict(learning_rate=1e-3, weight_decay=0.1, beta1=0.9, beta2=0.99)
CORES = os.cpu_count() or 1
SPLIT = {"JAX_NUM_CPU_DEVICES": str(CORES), "NPROC": str(2 * CORES + 2)}


def batches() -> np.ndarray:
  """Ten of them, inputs and targets: int [10, 2, B, T]."""
  shape = (10, 2, BATCH_SIZE, SHAPE["context_length"])
  return np.random.default_rng(0).integers(0, SHAPE["vocab_size"], shape)


def jax_steps(by_hand: bool = False, name: str = "adamw"):
  """A function that does a step and waits for it."""
  import jax
  import optax

  from benchmarks.by_hand import init, loss
  from gpt2_flax import GPT2, GPT2Config
  from gpt2_flax.training import mesh as mesh_lib
  from gpt2_flax.training import optimizer as optimizer_lib
  from gpt2_flax.training import step as step_lib
  from gpt2_flax.training.config import MeshConfig, OptimizerConfig, TrainConfig

  config = GPT2Config(**SHAPE, positional_encoding="learned")
  settings = OptimizerConfig(name, **OPTIMIZER, warmup_steps=0, max_grad_norm=1.0)
  schedule = optimizer_lib.learning_rate_schedule(settings, num_steps=10_000)
  train = TrainConfig(
    num_steps=1,
    batch_size=BATCH_SIZE,
    accumulation_steps=1,
    seed=0,
    log_every_steps=1,
    max_skipped_steps=0,
    max_loss_jump=0.0,
  )
  mesh = mesh_lib.make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1), train)
  if by_hand:
    params = init(config, jax.random.key(0))
    optimizer = optax.chain(
      optax.clip_by_global_norm(1.0),
      optax.adamw(
        schedule,
        b1=settings.beta1,
        b2=settings.beta2,
        weight_decay=settings.weight_decay,
        mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
      ),
    )

    def train_step(state, batch):
      params, opt_state = state
      value, grads = jax.value_and_grad(loss)(params, config, batch)
      updates, opt_state = optimizer.update(grads, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), value

    train_step = jax.jit(train_step, donate_argnums=0)
    state = (params, optimizer.init(params))
  else:
    model = GPT2(config)
    optimizer = optimizer_lib.make_optimizer(settings, schedule)
    abstract = step_lib.abstract_state(model, optimizer, mesh)
    train_step = step_lib.make_train_step(model, optimizer, schedule, abstract)
    state = step_lib.init_state(model, optimizer, jax.random.key(0), abstract)
  examples = [
    jax.device_put({"inputs": x, "targets": y}, mesh_lib.batch_sharding(mesh))
    for x, y in batches().astype(np.int32)
  ]
  done = 0

  def step():
    nonlocal state, done
    state, metrics = train_step(state, examples[done % len(examples)])
    jax.block_until_ready((state, metrics))
    done += 1

  return step


def torch_steps(compiled: bool):
  """The same for nanoGPT."""
  import torch

  sys.path.insert(0, _NANOGPT.value)
  from model import GPT, GPTConfig

  config = GPTConfig(
    block_size=SHAPE["context_length"],
    vocab_size=SHAPE["vocab_size"],
    n_layer=SHAPE["num_layers"],
    n_head=SHAPE["num_heads"],
    n_embd=SHAPE["embed_dim"],
    dropout=0.0,
    bias=True,
  )
  with contextlib.redirect_stdout(sys.stderr):
    model = GPT(config)
    optimizer = model.configure_optimizers(
      OPTIMIZER["weight_decay"],
      OPTIMIZER["learning_rate"],
      (OPTIMIZER["beta1"], OPTIMIZER["beta2"]),
      "cpu",
    )
  run = torch.compile(model) if compiled else model
  examples = torch.from_numpy(batches())
  done = 0

  def step():
    nonlocal done
    _, loss = run(*examples[done % len(examples)])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    done += 1

  return step


CONTENDERS = {
  "ours": lambda: jax_steps(),
  "muon": lambda: jax_steps(name="muon"),
  "split": lambda: jax_steps(),
  "hand": lambda: jax_steps(by_hand=True),
  "eager": lambda: torch_steps(compiled=False),
  "compiled": lambda: torch_steps(compiled=True),
}


def work(step) -> dict[str, float]:
  """A turn."""
  began = time.perf_counter()
  for _ in range(_STEPS.value):
    step()
  seconds = time.perf_counter() - began
  return {"step": seconds / _STEPS.value, "peak_bytes": turns.peak_bytes()}


def main(_) -> None:
  """Lets them take turns, prints a table."""
  if _CONTENDER.value:
    step = CONTENDERS[_CONTENDER.value]()
    for _ in range(5):
      step()
    turns.serve(lambda: work(step))
    return
  peers = ["eager", "compiled"] if _NANOGPT.value else []
  names = ["ours", "muon", "split", "hand", *peers]
  found = turns.take_turns(
    "benchmarks.training", names, _ROUNDS.value, env={"split": SPLIT}
  )
  milliseconds = {name: [1000 * turn["step"] for turn in found[name]] for name in names}

  def against(name: str, other: str) -> str:
    pairs = zip(milliseconds[name], milliseconds[other], strict=True)
    return turns.spread([mine / theirs for mine, theirs in pairs], 2)

  rows = [
    [
      name,
      f"{statistics.median(milliseconds[name]):.1f}",
      f"{min(milliseconds[name]):.1f}",
      *(against(name, other) for other in ["hand", *peers]),
      f"{max(turn['peak_bytes'] for turn in found[name]) / 2**20:.0f}",
    ]
    for name in names
  ]
  header = ["who", "ms a step", "fastest turn", *(f"/ {n}" for n in ["hand", *peers])]
  print(turns.table([*header, "peak MiB"], rows))


if __name__ == "__main__":
  logging.set_verbosity(logging.WARNING)
  app.run(main)
