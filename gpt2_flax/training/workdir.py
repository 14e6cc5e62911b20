"""The folder of a run: what is in it, and whether it is this run's."""

import json
import os
import pathlib
from typing import Any

from gpt2_flax import tokenizers
from gpt2_flax.errors import InputError
from gpt2_flax.tokenizers import Tokenizer
from gpt2_flax.training.checkpoints import Checkpoints
from gpt2_flax.training.config import differences, parse_run
from gpt2_flax.training.mesh import one_device_mesh
from gpt2_flax.training.metrics import write_atomically
from gpt2_flax.training.optimizer import learning_rate_schedule, make_optimizer
from gpt2_flax.training.step import abstract_state
from gpt2_flax.transformer import GPT2


def open_workdir(workdir: pathlib.Path, config: dict[str, Any], tokenizer: Tokenizer):
  """Makes the folder, or checks that it belongs to a run with this very config.

  Raises:
    InputError: the folder cannot be written, or belongs to another experiment; the
      message names each key that differs. Nothing was changed.
  """
  path = workdir / "config.json"
  if path.exists():
    try:
      before = json.loads(path.read_text("utf-8"))
      changed = differences(before, config)
    except (ValueError, AttributeError) as error:
      raise InputError(f"{path} is not a run's config: {error}") from error
    if changed:
      raise InputError(
        f"--workdir={workdir} holds a run with another config, so choose another:"
        f" {'; '.join(changed)}"
      )
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if not os.access(workdir, os.W_OK):
      raise PermissionError(13, "Permission denied")
    write_atomically(workdir / "tokenizer.json", tokenizers.dumps(tokenizer))
    write_atomically(path, json.dumps(config, indent=2) + "\n")
  except OSError as error:
    raise InputError(
      f"--workdir={workdir} cannot be written: {error.strerror}"
    ) from error


def load_run(workdir: pathlib.Path) -> tuple[GPT2, Any, Tokenizer]:
  """A run's model, the parameters of its newest checkpoint, and its tokenizer.

  Changes nothing in the folder, so that it may be called while the run goes on.

  Raises:
    InputError: there is no such run, or no checkpoint yet.
    RunError: all checkpoints are damaged.
  """
  if not (workdir / "config.json").exists():
    raise InputError(f"--workdir={workdir} holds no run: it has no config.json")
  values = json.loads((workdir / "config.json").read_text("utf-8"))
  tokenizer = tokenizers.load(workdir / "tokenizer.json")
  config = parse_run(values, tokenizer)
  model = GPT2(config.model)
  schedule = learning_rate_schedule(config.optimizer, config.train.num_steps)
  optimizer = make_optimizer(config.optimizer, schedule)
  abstract = abstract_state(model, optimizer, one_device_mesh())
  folder = workdir / "checkpoints"
  with Checkpoints(folder, config.checkpoint, read_only=True) as checkpoints:
    restored = checkpoints.restore(abstract)
  if restored is None:
    raise InputError(f"--workdir={workdir} has no checkpoint yet")
  return model, restored[0].params, tokenizer
