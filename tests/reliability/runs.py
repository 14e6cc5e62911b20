"""Runs of train.py in processes of their own: started, stopped, and what they leave."""

from collections.abc import Callable
import contextlib
import hashlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from tests import forked

NUM_STEPS = 100
# Everything there is to lose is in it: dropout, accumulation, evaluations. On the data
# and without the samples that start soonest: the rows start it hundreds of times.
TINY = (
  "--config=configs/markov.py",
  "--config.model.num_layers=1",
  "--config.model.embed_dim=16",
  "--config.model.num_heads=2",
  "--config.model.context_length=12",
  "--config.model.dropout_rate=0.1",
  f"--config.train.num_steps={NUM_STEPS}",
  "--config.train.batch_size=8",
  "--config.train.accumulation_steps=2",
  "--config.train.log_every_steps=5",
  "--config.eval.every_steps=20",
  "--config.eval.num_windows=20",
  "--config.eval.sample_tokens=0",
  "--config.checkpoint.every_steps=10",
)
Moment = Callable[[pathlib.Path], bool]  # of the workdir: has it come?


def start(*flags: str, **environment: str) -> forked.Process:
  """Begins `python train.py FLAGS`."""
  return forked.start("train.py", *flags, **environment)


def train(*flags: str, **environment: str) -> subprocess.CompletedProcess:
  """`python train.py FLAGS` to its end."""
  return forked.finish(start(*flags, **environment))


def when_trained(expression: str, *flags: str, **environment: str) -> str:
  """The value, as text, where `python train.py FLAGS` would begin to train."""
  code = f"""
import os, signal, sys
import jax
from gpt2_flax.doors import command_line, train
from gpt2_flax.training import loop
loop.train = lambda *_: sys.exit(str({expression}))
command_line.run(train.main)
"""
  ended = forked.finish(forked.start("-c", code, *flags, **environment))
  return ended.stderr.removesuffix("\n")


def train_to_the_end(workdir: pathlib.Path, *flags: str) -> subprocess.CompletedProcess:
  """The tiny run; an AssertionError unless it is done and complains of nothing."""
  done = train(*TINY, *flags, f"--workdir={workdir}")
  assert done.returncode == 0, done
  assert complaints(done) == [], done
  return done


def reference() -> pathlib.Path:
  """The workdir of the tiny run that nobody stopped; made once, for all rows."""
  cache = pathlib.Path(os.environ["XDG_CACHE_HOME"])  # of this session or campaign
  kept = cache / "reference"
  if not kept.exists():
    made = pathlib.Path(tempfile.mkdtemp(dir=cache)) / "run"
    train_to_the_end(made)
    with contextlib.suppress(OSError):  # another process had it at the same time
      made.rename(kept)
  return kept


def complaints(ended: subprocess.CompletedProcess) -> list[str]:
  """The lines of its standard error, but for orbax's that this machine is slow."""
  lines = ended.stderr.splitlines()
  return [line for line in lines if "Waiting for previous save" not in line]


def free_port() -> int:
  """Of this machine, where nobody listens."""
  with socket.create_server(("localhost", 0)) as server:
    return server.getsockname()[1]


def wait_for(moment: Moment, workdir: pathlib.Path, process: forked.Process) -> None:
  """Until the moment has come; an AssertionError if the process ends before."""
  patience = time.monotonic() + forked.PATIENCE_SECONDS
  while not moment(workdir):
    if process.poll() is not None or time.monotonic() > patience:
      process.kill()
      out, err = process.communicate()
      raise AssertionError(f"the moment to stop it never came; it said {out}{err}")
    time.sleep(0.002)


def stop(
  moment: Moment, number: signal.Signals, workdir: pathlib.Path, *flags: str
) -> subprocess.CompletedProcess:
  """Starts the tiny run, sends it a signal when the moment has come; how it ended."""
  process = start(*TINY, *flags, f"--workdir={workdir}")
  wait_for(moment, workdir, process)
  process.send_signal(number)
  return forked.finish(process)


def logged(step: int) -> Moment:
  """This step's metrics are written."""

  def moment(workdir: pathlib.Path) -> bool:
    path = workdir / "metrics.jsonl"
    return path.exists() and f'"step": {step},' in path.read_text()

  return moment


def saving(step: int) -> Moment:
  """As soon as anything of this checkpoint is there, which is before it is whole."""

  def moment(workdir: pathlib.Path) -> bool:
    folder = workdir / "checkpoints"
    return folder.exists() and any(
      path.name.split(".")[0] == str(step) for path in folder.iterdir()
    )

  return moment


def records(workdir: pathlib.Path) -> list[dict]:
  """All that was measured."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def evaluations(workdir: pathlib.Path) -> list[dict]:
  """What was measured at each evaluation."""
  return [record for record in records(workdir) if "val/loss" in record]


def checkpoint_steps(workdir: pathlib.Path) -> list[int]:
  """Of the whole checkpoints, ascending."""
  names = [path.name for path in (workdir / "checkpoints").iterdir()]
  return sorted(int(name) for name in names if name.isdecimal())


def newest_step(workdir: pathlib.Path) -> int:
  """The step of the newest whole checkpoint, or 0."""
  if not (workdir / "checkpoints").exists():
    return 0
  return max(checkpoint_steps(workdir), default=0)


def digest(workdir: pathlib.Path) -> str:
  """SHA-256 of the newest checkpoint's content.

  Over the position in the data, and the name, dtype, shape and bytes of every array:
  params, optimizer state, step and random key. As orbax reads them, without our checks.
  """
  checkpoint = workdir / "checkpoints" / str(checkpoint_steps(workdir)[-1])
  with ocp.StandardCheckpointer() as checkpointer:
    state = checkpointer.restore((checkpoint / "state").absolute())
  about = json.loads((checkpoint / "about" / "metadata").read_text())
  return digest_of(state, about["data_position"])


def digest_of(state: Any, position: dict) -> str:
  """See `digest`."""
  content = hashlib.sha256(json.dumps(position, sort_keys=True).encode())
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    array = np.asarray(jax.device_get(leaf))
    name = jax.tree_util.keystr(path)
    content.update(f"\n{name} {array.dtype} {array.shape} ".encode())
    content.update(array.tobytes())
  return content.hexdigest()


def assert_whole(checkpoint: pathlib.Path) -> None:
  """sha256sum finds every file in it as it was saved."""
  command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
  checked = subprocess.run(command, cwd=checkpoint, capture_output=True, text=True)
  assert checked.returncode == 0, checked
