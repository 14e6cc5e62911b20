"""The folder of a run: what is in it, and whether it is this run's."""

from collections.abc import Iterator
import contextlib
import fcntl
import json
import os
import pathlib
import socket
import time
from typing import Any, TextIO

from absl import logging
import jax
import numpy as np

from gpt2_flax import hub_folder, pretrained, tokenizers
from gpt2_flax.atomic_files import write_text
from gpt2_flax.datasets import Dataset
from gpt2_flax.errors import cannot_write, InputError
from gpt2_flax.json_files import read_json
from gpt2_flax.tokenizers import Tokenizer
from gpt2_flax.training import processes
from gpt2_flax.training.checkpoints import Checkpoints
from gpt2_flax.training.config import differences, ExperimentConfig, from_dict, is_run
from gpt2_flax.training.mesh import one_device_mesh, put_parts
from gpt2_flax.training.optimizer import learning_rate_schedule, make_optimizer
from gpt2_flax.training.step import abstract_state
from gpt2_flax.transformer import GPT2

LOCK_SECONDS = 1  # how long a lock may be held by one that is just leaving, or coming


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """While entered, no other run enters the same folder, which is made if need be.

  The lock is the operating system's, on WORKDIR/lock: it ends with its process, however
  that ends, so a lock that a killed run has left keeps nobody out. Runs on different
  machines see each other's where the file system carries locks, as NFS does; one that
  knows no locks at all gives a warning. Of several processes the first locks for all.

  Raises:
    InputError: another run is in there (the message names its process and host; nothing
      was changed), or the folder cannot be written.
  """
  path, file = workdir / "lock", None
  with processes.all_or_none():
    if jax.process_index() == 0:
      file = _lock(path)
  try:
    yield
  finally:
    if file:
      path.unlink(missing_ok=True)  # before anybody else can have it
      file.close()


def _lock(path: pathlib.Path) -> TextIO:
  """The open file, which holds the lock and says whose it is."""
  patience = time.monotonic() + LOCK_SECONDS
  while True:
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      file = path.open("a+", encoding="utf-8")
    except OSError as error:
      raise cannot_write(f"--workdir={path.parent}", error) from error
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      if os.path.samestat(os.fstat(file.fileno()), path.stat()):
        break
    except FileNotFoundError:
      pass  # its owner has just left and removed it
    except BlockingIOError:
      if time.monotonic() > patience:
        with file:
          file.seek(0)
          owner = file.read().strip()
        raise InputError(
          f"--workdir={path.parent} is in use by {owner}: wait for its end, stop it, or"
          " choose another"
        ) from None
      time.sleep(0.1)
    except OSError as error:
      logging.warning(
        "%s cannot be locked (%s): nothing keeps two runs apart here",
        path.parent,
        error.strerror,
      )
      break
    file.close()
  file.truncate(0)
  file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
  file.flush()
  return file


def open_workdir(
  workdir: pathlib.Path, config: ExperimentConfig, tokenizer: Tokenizer
) -> None:
  """Begins a run in its folder, or checks that it is of a run with this very config.

  Of several processes the first does so, the others see that they find what it made.

  Raises:
    InputError: the folder belongs to another experiment (the message names each key
      that differs; nothing was changed), or is not shared.
  """
  with processes.all_or_none():
    if jax.process_index() == 0:
      _open_workdir(workdir, config, tokenizer)
  with processes.all_or_none():
    if not (workdir / "config.json").exists():
      raise InputError(
        f"--workdir={workdir} is not the folder of process 0: must be one that all"
        " processes share"
      )


def _open_workdir(
  workdir: pathlib.Path, config: ExperimentConfig, tokenizer: Tokenizer
) -> None:
  path = workdir / "config.json"
  if path.exists():
    try:
      before = from_dict(read_json(path))
    except InputError as error:
      raise InputError(f"{path} is not a run's config: {error}") from error
    if changed := differences(before, config):
      raise InputError(
        f"--workdir={workdir} holds a run with another config, so choose another:"
        f" {'; '.join(changed)}"
      )
  write_text(workdir / "tokenizer.json", tokenizers.dumps(tokenizer))
  write_text(path, json.dumps(config.to_dict(), indent=2) + "\n")


def load_run(workdir: pathlib.Path) -> tuple[GPT2, Any, Tokenizer]:
  """A run's model, the parameters of its newest checkpoint, and its tokenizer.

  Changes nothing in the folder, so that it may be called while the run goes on.

  Raises:
    InputError: there is no such run, or no checkpoint yet.
    RunError: all checkpoints are damaged.
  """
  if not os.path.exists(workdir / "config.json"):
    raise InputError(f"--workdir={workdir} holds no run: it has no config.json")
  config = from_dict(read_json(workdir / "config.json"))
  tokenizer = tokenizers.load(workdir / "tokenizer.json")
  model = GPT2(config.model.plain)
  schedule = learning_rate_schedule(config.optimizer, config.train.num_steps)
  optimizer = make_optimizer(config.optimizer, schedule)
  abstract = abstract_state(model, optimizer, one_device_mesh())
  folder = workdir / "checkpoints"
  with Checkpoints(folder, config.checkpoint, read_only=True) as checkpoints:
    restored = checkpoints.restore(abstract)
  if restored is None:
    raise InputError(f"--workdir={workdir} has no checkpoint yet")
  return model, restored[0].params, tokenizer


def load_dataset(workdir: pathlib.Path) -> Dataset | None:
  """What a run was trained on; None where its file is not there as it was."""
  config = from_dict(read_json(workdir / "config.json"))
  try:
    dataset = config.data.make(config.model.context_length)
  except InputError:
    return None
  saved = tokenizers.load(workdir / "tokenizer.json")
  same = tokenizers.dumps(dataset.tokenizer) == tokenizers.dumps(saved)
  return dataset if same else None


def load_source(name: str) -> tuple[GPT2, Any, Tokenizer]:
  """As `load_run`, for a run's folder, one in Hugging Face's layout, or a hub id."""
  folder = hub_folder.find_folder(name)
  if is_run(folder):
    return load_run(folder)
  return *pretrained.load(folder), pretrained.load_tokenizer(folder)


def load_params(name: str, abstract: Any) -> Any:
  """The parameters of `load_source`, where and as long as `abstract` has them."""
  _, params, _ = load_source(name)

  def fit(leaf: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
    # the one thing that may be longer is the table of positions
    cut = np.asarray(leaf[: like.shape[0]])
    return put_parts(cut, like.sharding)

  return jax.tree.map(fit, params, abstract)
