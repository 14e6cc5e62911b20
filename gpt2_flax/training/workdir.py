"""The folder of a run: what is in it, and whether it is this run's."""

from collections.abc import Iterator
import contextlib
import fcntl
import json
import os
import pathlib
import socket
import time
from typing import TextIO

from absl import logging
import jax

from gpt2_flax.errors import cannot_write, InputError
from gpt2_flax.files.atomic import write_text
from gpt2_flax.files.json import read_json
from gpt2_flax.tokenizer import Tokenizer, tokenizer_json
from gpt2_flax.training import processes
from gpt2_flax.training.config import ExperimentConfig, from_dict
from gpt2_flax.training.resume import differences

LOCK_SECONDS = 1  # how long to wait for a run that is just ending, or beginning


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """While entered, no other run enters the same folder, which is made if need be.

  The lock is the operating system's, on WORKDIR/lock. It ends with its process, however
  the process ends, so the file that a killed run leaves locks no other run out. Runs on
  different machines see each other's lock where the file system carries locks, as NFS
  does. A file system without locks gives a warning. Of several processes the first
  locks for all.

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
      path.unlink(missing_ok=True)  # while it is still locked
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
  write_text(workdir / "tokenizer.json", tokenizer_json(tokenizer))
  write_text(path, json.dumps(config.to_dict(), indent=2) + "\n")
