"""The folder of a run: what is in it, and whether it is this run's."""

import json
import os
import pathlib
from typing import Any

from gpt2_flax import tokenizers
from gpt2_flax.errors import InputError
from gpt2_flax.tokenizers import Tokenizer
from gpt2_flax.training.config import differences
from gpt2_flax.training.metrics import write_atomically


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
