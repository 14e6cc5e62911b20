"""Peak memory on CPUs at GPT-2 small's size: loading it, and a step of training it.

    python -m benchmarks.memory --peers=transformers,nanogpt --nanogpt=DIR

Each in a process of its own, float32. Loading: a folder of random weights that
`pretrained.save` wrote, read by `pretrained.load` and by transformers. Training: three
steps of AdamW on one window of 1,024 tokens, ours and nanoGPT's; "ours, remat" with
`--config.model.remat=scores`. What the libraries take once they are imported is listed
beside it.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from absl import app, flags, logging
import numpy as np

from benchmarks import turns
from gpt2_flax.training.cpu import MEMORY_FIRST

_PEERS = flags.DEFINE_list("peers", [], "transformers, nanogpt.")
_NANOGPT = flags.DEFINE_string("nanogpt", None, "Where nanoGPT's model.py lies.")
_FOLDER = flags.DEFINE_string("folder", None, "Internal: where the weights are.")
_CONTENDER = flags.DEFINE_string("contender", None, "Internal: who this process is.")

BATCH = np.random.default_rng(0).integers(0, 50_257, (2, 1, 1024))


def save() -> None:
  """Writes the weights that are loaded."""
  import jax
  import jax.numpy as jnp

  from gpt2_flax import GPT2, GPT2Config, pretrained

  model = GPT2(GPT2Config.published("small"))
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
  pretrained.save(_FOLDER.value, model, params)


def load_ours():
  """Imports; gives what is measured."""
  from gpt2_flax import pretrained

  return lambda: pretrained.load(_FOLDER.value)


def load_transformers():
  """The same with transformers."""
  from transformers import GPT2LMHeadModel

  return lambda: GPT2LMHeadModel.from_pretrained(_FOLDER.value)


def train_ours(remat: str = "none"):
  """Three steps, as train.py takes them."""
  import dataclasses

  import jax

  from gpt2_flax import GPT2, GPT2Config
  from gpt2_flax.training import optimizer as optimizer_lib
  from gpt2_flax.training import step as step_lib
  from gpt2_flax.training.config import OptimizerConfig
  from gpt2_flax.training.mesh import one_device_mesh

  def steps():
    small = GPT2Config.published("small")
    model = GPT2(dataclasses.replace(small, remat=remat))
    settings = OptimizerConfig("adamw", 6e-4, 0, 0.1, 0.9, 0.95, 1.0)
    schedule = optimizer_lib.learning_rate_schedule(settings, 100)
    optimizer = optimizer_lib.make_optimizer(settings, schedule)
    abstract = step_lib.abstract_state(model, optimizer, one_device_mesh())
    state = step_lib.init_state(model, optimizer, jax.random.key(0), abstract)
    step = step_lib.make_train_step(model, optimizer, schedule, abstract)
    inputs, targets = BATCH.astype(np.int32)
    for _ in range(3):
      state, metrics = step(state, {"inputs": inputs, "targets": targets})
    jax.block_until_ready((state, metrics))

  return steps


def train_remat():
  """With `--config.model.remat=scores`."""
  os.environ["XLA_FLAGS"] = MEMORY_FIRST
  return train_ours("scores")


def train_nanogpt():
  """The same with nanoGPT."""
  import torch

  sys.path.insert(0, _NANOGPT.value)
  from model import GPT, GPTConfig

  def steps():
    with contextlib.redirect_stdout(sys.stderr):
      model = GPT(GPTConfig(vocab_size=50_257, dropout=0.0))
      optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cpu")
    inputs, targets = torch.from_numpy(BATCH)
    for _ in range(3):
      _, loss = model(inputs, targets)
      loss.backward()
      torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
      optimizer.step()
      optimizer.zero_grad(set_to_none=True)

  return steps


CONTENDERS = {
  "load, ours": load_ours,
  "load, transformers": load_transformers,
  "train, ours": train_ours,
  "train, ours, remat": train_remat,
  "train, nanogpt": train_nanogpt,
}


def main(_) -> None:
  """Measures each, prints a table."""
  if _CONTENDER.value == "save":
    save()
    return
  if _CONTENDER.value:
    work = CONTENDERS[_CONTENDER.value]()
    before = turns.peak_bytes()
    work()
    print(json.dumps([before, turns.peak_bytes()]))
    return
  rows = []
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name) / "gpt2"

    def run(contender: str) -> str:
      command = [sys.executable, "-m", "benchmarks.memory", *sys.argv[1:]]
      command += [f"--folder={folder}", f"--contender={contender}"]
      env = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
      return subprocess.run(
        command, env=env, stdout=subprocess.PIPE, text=True, check=True
      ).stdout

    run("save")
    for contender in CONTENDERS:
      what, _, who = contender.partition(", ")
      if who in ("ours", "ours, remat", *_PEERS.value):
        before, peak = json.loads(run(contender).splitlines()[-1])
        rows.append([what, who, f"{before / 2**20:.0f}", f"{peak / 2**20:.0f}"])
  print(turns.table(["what", "who", "imported, MiB", "peak MiB"], rows))


if __name__ == "__main__":
  logging.set_verbosity(logging.WARNING)
  app.run(main)
