"""Training GPT-2 small on one GPU: tokens a second, MFU and memory beside nanoGPT's.

    python -m benchmarks.gpu --nanogpt=DIR           the training step, in turn with its
    python -m benchmarks.gpu --batch_size=32         ours alone
    python -m benchmarks.gpu --generate              tokens written, beside the limit
    python -m benchmarks.gpu --num_layers=2 --num_heads=2 --embed_dim=64 \
      --context_length=64 --batch_size=2 --vocab_size=256 --matrix=256 --megabytes=8
                                                     small enough for any machine

Both train in bfloat16 with float32 weights, dropout 0, AdamW and gradients clipped, on
a batch that stays on the device: ours is `make_train_step`, as train.py runs it; theirs
is model.py at that path under autocast, with torch.compile, its fused AdamW and flash
attention. They take turns, round after round, each time in a process of its own, so
that each has all of the memory. Caches of compiled programs are empty at first: the
first round's first step is a cold one, the others' are warm.

The ceilings are measured by jax: a large matrix product, and an array read and written.
The floor of a step is its matrix products at the first (`flops.py` counts them) and the
optimizer's reading and writing at the second; of a generated token, reading weights and
cache once.
"""

import contextlib
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags, logging
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax import generation, GPT2, GPT2Config
from gpt2_flax.training import config as config_lib
from gpt2_flax.training.flops import flops_per_token, PEAK_FLOPS
from gpt2_flax.training.mesh import one_device_mesh
from gpt2_flax.training.optimizer import learning_rate_schedule, make_optimizer
from gpt2_flax.training.step import abstract_state, init_state, make_train_step
from gpt2_flax.transformer import num_params

_NANOGPT = flags.DEFINE_string("nanogpt", None, "Where nanoGPT's model.py lies.")
_COMPILE = flags.DEFINE_bool("compile", True, "torch.compile for nanoGPT.")
_GENERATE = flags.DEFINE_bool("generate", False, "Generation in place of training.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Windows in a training step.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1", "8"], "Texts made at once.")
_PROMPT = flags.DEFINE_integer("prompt", 128, "Tokens in each prompt.")
_NEW = flags.DEFINE_integer("new", 256, "Tokens to add to each.")
_ATTENTION = flags.DEFINE_string("attention", "flash", "Ours: flash or explicit.")
_SHAPE = {
  name: flags.DEFINE_integer(name, default, "Of the model.")
  for name, default in (
    ("num_layers", 12),
    ("num_heads", 12),
    ("embed_dim", 768),
    ("context_length", 1024),
    ("vocab_size", 50_257),
  )
}
_ROUNDS = flags.DEFINE_integer("rounds", 3, "How often each has its turn.")
_STEPS = flags.DEFINE_integer("steps", 20, "Steps that are timed in a turn.")
_MATRIX = flags.DEFINE_integer("matrix", 8192, "Rows of the ceiling's matrices.")
_MEGABYTES = flags.DEFINE_integer("megabytes", 2048, "Of the ceiling's array.")
_WORKER = flags.DEFINE_string("worker", None, "Internal: what this process times.")

WARMUP_STEPS = 3
# float32: value and two moments read and written, the gradient written and read.
OPTIMIZER_BYTES = 8 * 4  # a parameter


def model_config() -> GPT2Config:
  """Of the model that both train, as published in all but the sizes."""
  shape = {name: flag.value for name, flag in _SHAPE.items()}
  return GPT2Config.published(
    "small", **shape, dtype="bfloat16", attention=_ATTENTION.value
  )


def batch(vocab_size: int) -> np.ndarray:
  """Inputs and targets: int64 [2, B, T]."""
  shape = (2, _BATCH_SIZE.value, _SHAPE["context_length"].value)
  return np.random.default_rng(0).integers(0, vocab_size, shape)


def timed_steps(step, wait) -> dict[str, float]:
  """Seconds of the first step, and of each of those after the warm-up."""
  began = time.perf_counter()
  step()
  wait()
  first = time.perf_counter() - began
  for _ in range(WARMUP_STEPS):
    step()
  wait()
  began = time.perf_counter()
  for _ in range(_STEPS.value):
    step()
  wait()
  return {
    "first_step": first,
    "step": (time.perf_counter() - began) / _STEPS.value,
  }


def host_peak_bytes() -> int:
  """What this process has had in main memory at most."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def jax_peak_bytes() -> int:
  """What the device has had in memory at most; on a CPU, the process."""
  stats = jax.devices()[0].memory_stats()
  return stats["peak_bytes_in_use"] if stats else host_peak_bytes()


def ours() -> dict[str, float]:
  """The training step as train.py runs it."""
  model = GPT2(model_config())
  settings = config_lib.OptimizerConfig(
    name="adamw",
    learning_rate=6e-4,
    warmup_steps=0,
    weight_decay=0.1,
    beta1=0.9,
    beta2=0.95,
    max_grad_norm=1.0,
  )
  schedule = learning_rate_schedule(settings, num_steps=10_000)
  optimizer = make_optimizer(settings, schedule)
  abstract = abstract_state(model, optimizer, one_device_mesh())
  state = init_state(model, optimizer, jax.random.key(0), abstract)
  train_step = make_train_step(model, optimizer, schedule, abstract)
  inputs, targets = batch(model.config.vocab_size).astype(np.int32)
  examples = jax.device_put({"inputs": inputs, "targets": targets})
  metrics = None

  def step():
    nonlocal state, metrics
    state, metrics = train_step(state, examples)

  result = timed_steps(step, lambda: jax.block_until_ready(state))
  loss = float(metrics["train/loss"])
  return result | {"peak_bytes": jax_peak_bytes(), "loss": loss}


def nanogpt() -> dict[str, float]:
  """Their model and optimizer, called in the way that their train.py does."""
  import torch

  sys.path.insert(0, _NANOGPT.value)
  from model import GPT, GPTConfig

  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.set_float32_matmul_precision("high")
  ours = model_config()
  config = GPTConfig(
    block_size=ours.context_length,
    vocab_size=-(-ours.vocab_size // 64) * 64,  # padded as they pad GPT-2's
    n_layer=ours.num_layers,
    n_head=ours.num_heads,
    n_embd=ours.embed_dim,
    dropout=0.0,
    bias=True,
  )
  with contextlib.redirect_stdout(sys.stderr):
    model = GPT(config).to(device)
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), device)
  run = torch.compile(model) if _COMPILE.value else model
  inputs, targets = (torch.from_numpy(x).to(device) for x in batch(ours.vocab_size))
  loss = None

  def step():
    nonlocal loss
    with torch.autocast(device, torch.bfloat16):
      _, loss = run(inputs, targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

  on_gpu = device == "cuda"
  result = timed_steps(step, torch.cuda.synchronize if on_gpu else lambda: None)
  peak = torch.cuda.max_memory_allocated() if on_gpu else host_peak_bytes()
  return result | {"peak_bytes": peak, "loss": loss.item()}


def generate() -> dict[str, list[float]]:
  """Greedy, with weights in bfloat16: seconds a token, for each batch size."""
  model = GPT2(model_config())
  params = jax.jit(
    lambda key: jax.tree.map(
      lambda leaf: leaf.astype(jnp.bfloat16),
      model.init(key, jnp.zeros((1, 1), jnp.int32)),
    )
  )(jax.random.key(0))
  rng = np.random.default_rng(0)

  def seconds_a_token(prompts: list[list[int]]) -> float:
    began = time.perf_counter()
    generation.generate(
      model,
      params,
      prompts,
      num_tokens=_NEW.value,
      sampling=generation.Sampling(temperature=0),
    )
    return (time.perf_counter() - began) / _NEW.value

  found = {}
  for batch_size in map(int, _BATCH_SIZES.value):
    shape = (batch_size, _PROMPT.value)
    prompts = rng.integers(0, model.config.vocab_size, shape).tolist()
    _, *seconds = (seconds_a_token(prompts) for _ in range(1 + _ROUNDS.value))
    found[str(batch_size)] = seconds  # but the first, which compiles
  return found | {"peak_bytes": jax_peak_bytes()}


def ceilings() -> dict[str, float | str]:
  """FLOP/s of a matrix product in bfloat16, bytes/s through memory, and of what."""

  def fastest(function, x) -> float:
    """Seconds; the best of several runs of ten, so that starting them is hidden."""
    function = jax.jit(function)
    jax.block_until_ready(function(x))
    seconds = []
    for _ in range(5):
      began = time.perf_counter()
      for _ in range(10):
        out = function(x)
      jax.block_until_ready(out)
      seconds.append((time.perf_counter() - began) / 10)
    return min(seconds)

  rows = _MATRIX.value
  matrix = jax.random.normal(jax.random.key(0), (rows, rows), jnp.bfloat16)
  array = jnp.zeros(_MEGABYTES.value * 2**20 // 4, jnp.float32)
  return {
    "device": jax.devices()[0].device_kind,
    "flops": 2 * rows**3 / fastest(lambda x: x @ x, matrix),
    "bandwidth": 2 * array.nbytes / fastest(lambda x: x + 1, array),
  }


WORKERS = {
  "ours": ours,
  "nanogpt": nanogpt,
  "generate": generate,
  "ceilings": ceilings,
}


def run_worker(name: str, caches: pathlib.Path) -> dict:
  """What a process of its own finds; it and nothing else is on the device."""
  env = os.environ | {
    "JAX_COMPILATION_CACHE_DIR": str(caches / "jax"),
    "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
    "TRITON_CACHE_DIR": str(caches / "triton"),
  }
  command = [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:], f"--worker={name}"]
  done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
  return json.loads(done.stdout.splitlines()[-1])


def spread(values: list[float], digits: int) -> str:
  """Median (least to most)."""
  low, high = min(values), max(values)
  middle = statistics.median(values)
  return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def report_training(found: dict[str, list[dict]], limits: dict) -> None:
  """A line for each, the floor, and how ours stands to theirs."""
  config = model_config()
  tokens = _BATCH_SIZE.value * config.context_length
  flops = tokens * flops_per_token(config)
  peak = PEAK_FLOPS.get(limits["device"])
  for name, turns in found.items():
    rates = [tokens / turn["step"] for turn in turns]
    step = statistics.median(turn["step"] for turn in turns)
    mfu = f"{flops / step / peak:.1%}" if peak else "unknown"
    memory = max(turn["peak_bytes"] for turn in turns) / 2**30
    cold, *warm = (turn["first_step"] for turn in turns)
    print(
      f"{name:8s} tokens/s {spread(rates, 0)}   {1000 * step:.2f} ms a step   MFU {mfu}"
      f"   of measured product {flops / step / limits['flops']:.1%}\n"
      f"         peak {memory:.2f} GiB   first step {cold:.1f} s cold,"
      f" {min(warm, default=cold):.1f} s warm   last loss {turns[-1]['loss']:.3f}"
    )
  model = GPT2(config)
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
  products = 1000 * flops / limits["flops"]
  moves = 1000 * OPTIMIZER_BYTES * num_params(params) / limits["bandwidth"]
  print(
    f"floor    {products + moves:.2f} ms a step: {products:.2f} for"
    f" {flops / 1e9:,.1f} GFLOP, {moves:.2f} for the optimizer's bytes"
  )
  if "nanogpt" in found:
    pairs = zip(found["ours"], found["nanogpt"], strict=True)
    ratios = [theirs["step"] / mine["step"] for mine, theirs in pairs]
    print(f"ours / nanoGPT, tokens/s, round by round: {spread(ratios, 3)}")


def report_generation(found: dict, limits: dict) -> None:
  """Tokens a second and the share of what reading weights and cache once allows."""
  config = model_config()
  model = GPT2(config)
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
  # Embeddings of positions, and of tokens that go in, are looked up: not all are read.
  weights = num_params(params) - config.context_length * config.embed_dim
  length = _PROMPT.value + _NEW.value / 2  # on average
  for batch_size in map(int, _BATCH_SIZES.value):
    cache = 2 * config.num_layers * config.embed_dim * length * batch_size
    least = 2 * (weights + cache) / limits["bandwidth"]
    seconds = found[str(batch_size)]
    rates = [batch_size / s for s in seconds]
    share = least / statistics.median(seconds)
    print(
      f"batch {batch_size:3d}  tokens/s {spread(rates, 1)}   limit"
      f" {batch_size / least:,.1f}, of which {share:.1%}"
    )
  print(f"peak {found['peak_bytes'] / 2**30:.2f} GiB")


def main(_) -> None:
  """Times what is asked for, in processes of their own, and prints it."""
  if _WORKER.value:
    print(json.dumps(WORKERS[_WORKER.value]()))
    return
  with tempfile.TemporaryDirectory() as folder:
    caches = pathlib.Path(folder)
    limits = run_worker("ceilings", caches)
    print(
      f"{limits['device']}, jax {jax.__version__}: measured"
      f" {limits['flops'] / 1e12:.2f} TFLOP/s, {limits['bandwidth'] / 1e9:,.0f} GB/s"
    )
    if _GENERATE.value:
      report_generation(run_worker("generate", caches), limits)
      return
    found = {"ours": []} | ({"nanogpt": []} if _NANOGPT.value else {})
    for _ in range(_ROUNDS.value):
      for name, turns in found.items():
        turns.append(run_worker(name, caches))
    report_training(found, limits)


if __name__ == "__main__":
  logging.set_verbosity(logging.WARNING)
  app.run(main)
