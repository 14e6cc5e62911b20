"""Where weights come from: a run's folder, one in Hugging Face's layout, or the hub."""

import os
import pathlib
from typing import Any

import jax
import numpy as np

from gpt2_flax import pretrained
from gpt2_flax.datasets import Dataset
from gpt2_flax.errors import InputError
from gpt2_flax.files.json import read_json
from gpt2_flax.hub.folder import CONFIG, find_folder, read_config
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.tokenizer import read_tokenizer, Tokenizer, tokenizer_json
from gpt2_flax.training.checkpoints import Checkpoints
from gpt2_flax.training.config import from_dict
from gpt2_flax.training.mesh import one_device_mesh, put_parts
from gpt2_flax.training.optimizer import learning_rate_schedule, make_optimizer
from gpt2_flax.training.step import abstract_state
from gpt2_flax.transformer import GPT2


def is_run(folder: pathlib.Path) -> bool:
  """Whether train.py wrote this folder; else it may be in Hugging Face's layout."""
  return (folder / "checkpoints").is_dir()


def source_config(folder: pathlib.Path) -> GPT2Config:
  """The shape of the model in a run's folder or one in Hugging Face's layout."""
  path = folder / CONFIG
  if not is_run(folder):
    return read_config(path)
  return from_dict(read_json(path)).model.plain


def load_run(workdir: pathlib.Path) -> tuple[GPT2, Any, Tokenizer]:
  """A run's model, the parameters of its newest checkpoint, and its tokenizer.

  Changes nothing in the folder, so that it may be called while the run goes on.

  Raises:
    InputError: there is no such run, or no checkpoint yet.
    RunError: all checkpoints are damaged.
  """
  if not os.path.exists(workdir / "config.json"):
    raise InputError(f"{workdir} holds no run: it has no config.json")
  config = from_dict(read_json(workdir / "config.json"))
  tokenizer = read_tokenizer(workdir / "tokenizer.json")
  model = GPT2(config.model.plain)
  schedule = learning_rate_schedule(config.optimizer, config.train.num_steps)
  optimizer = make_optimizer(config.optimizer, schedule)
  abstract = abstract_state(model, optimizer, one_device_mesh())
  folder = workdir / "checkpoints"
  with Checkpoints(folder, config.checkpoint, read_only=True) as checkpoints:
    restored = checkpoints.restore(abstract)
  if restored is None:
    raise InputError(f"{workdir} has no checkpoint yet")
  return model, restored[0].params, tokenizer


def load_dataset(workdir: pathlib.Path) -> Dataset | None:
  """What a run was trained on; None where its file is not there as it was."""
  config = from_dict(read_json(workdir / "config.json"))
  try:
    dataset = config.data.make(config.model.context_length)
  except InputError:
    return None
  saved = read_tokenizer(workdir / "tokenizer.json")
  same = tokenizer_json(dataset.tokenizer) == tokenizer_json(saved)
  return dataset if same else None


def load_source(name: str) -> tuple[GPT2, Any, Tokenizer]:
  """As `load_run`, for a run's folder, one in Hugging Face's layout, or a hub id."""
  folder = find_folder(name)
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
