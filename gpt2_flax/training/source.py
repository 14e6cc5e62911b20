"""Where weights come from: a run's folder, one in Hugging Face's layout, or the hub."""

from collections.abc import Callable
import dataclasses
import math
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
from gpt2_flax.tokenizer import KINDS, read_tokenizer, same_tokens, Tokenizer
from gpt2_flax.training import adapter_folder
from gpt2_flax.training.config import ExperimentConfig, from_dict
from gpt2_flax.training.kept import read_frozen, read_params, saved_steps
from gpt2_flax.training.lora import by_name, merged, pairs
from gpt2_flax.training.mesh import one_device_mesh, put_parts, with_shardings
from gpt2_flax.training.tuning import make_tuning
from gpt2_flax.transformer import abstract_params, GPT2


def is_run(folder: pathlib.Path) -> bool:
  """Whether train.py wrote this folder; if not, it may be in Hugging Face's layout."""
  return (folder / "checkpoints").is_dir()


def source_config(folder: pathlib.Path) -> GPT2Config:
  """The shape of the model in a run's folder or one in Hugging Face's layout."""
  if not is_run(folder):
    return read_config(folder / CONFIG)
  return read_run_config(folder).model.plain


def load(
  source: str | os.PathLike,
  step: int | None = None,
  model: Callable[[GPT2Config], GPT2] = GPT2,
) -> tuple[GPT2, Any, Tokenizer]:
  """A model, its parameters and its tokenizer, wherever they come from.

  Of a run nothing is changed, so that it may go on meanwhile.

  Args:
    source: a run's folder, a folder in Hugging Face's layout, or the id of a repository
      on its hub, which is downloaded once; or a folder of adapters as PEFT writes it,
      which are merged into the base that it names.
    step: of a run, one of `steps`; None for the newest.
    model: of a run, what made its model, if `loop.train` was given one.

  Raises:
    InputError: there is no such source or step; or the run has parts of yours that are
      not imported, or a model of yours that is not given.
    RunError: the step is damaged, or all are.
  """
  folder = find_folder(os.fspath(source))
  if is_run(folder):
    return load_run(folder, step, model)
  if step is not None:
    raise InputError(f"step is {step}: {source} is no run, so it has no steps")
  if (folder / adapter_folder.CONFIG).exists():
    return _load_adapted(folder)
  tokenizer = pretrained.load_tokenizer(folder)
  tokenizer.require_known(read_config(folder / CONFIG).vocab_size, source)
  return *pretrained.load(folder), tokenizer


def steps(run: str | os.PathLike) -> list[int]:
  """The steps of a run whose parameters are kept, ascending: see `load`."""
  folder = pathlib.Path(run)
  if not is_run(folder):
    raise InputError(f"{folder} holds no run: it has no checkpoints")
  return list(saved_steps(folder / "checkpoints"))


def load_run(
  workdir: pathlib.Path,
  step: int | None = None,
  model: Callable[[GPT2Config], GPT2] = GPT2,
) -> tuple[GPT2, Any, Tokenizer]:
  """As `load`, for a run's folder."""
  config = read_run_config(workdir)
  if "model" in config.own and model is GPT2:
    raise InputError(
      f"{workdir} holds a model that {config.own['model']} made: open it in Python,"
      " by gpt2_flax.load(..., model=...)"
    )
  path = workdir / "tokenizer.json"
  KINDS.check_imported(read_json(path).get("kind"), config.own.get("tokenizer"))
  tokenizer = read_tokenizer(path)
  tokenizer.require_known(config.model.vocab_size, workdir)
  network = model(config.model.plain)
  tuning = make_tuning(config.finetune, network)
  named = jax.eval_shape(tuning.split, abstract_params(network), jax.random.key(0))
  learns, frozen = with_shardings(named, one_device_mesh())
  folder = workdir / "checkpoints"
  learns = read_params(folder, learns, step)
  if frozen is not None:
    frozen = read_frozen(folder, frozen)
  return network, tuning.join(learns, frozen), tokenizer


def read_run_config(workdir: pathlib.Path) -> ExperimentConfig:
  """What a run was made with.

  Raises:
    InputError: there is no run, or it has parts of yours that are not imported: the
      message names what to give to --import.
  """
  if not os.path.exists(workdir / CONFIG):
    raise InputError(f"{workdir} holds no run: it has no {CONFIG}")
  values = read_json(workdir / CONFIG)
  if "model_type" in values:
    raise InputError(f"{workdir} holds no run but weights: give it as --pretrained")
  return from_dict(values)


def _load_adapted(folder: pathlib.Path) -> tuple[GPT2, Any, Tokenizer]:
  """The base of a folder of adapters, with them merged into it."""
  base, adapters, scales = adapter_folder.load(folder)
  try:
    base_folder = find_folder(base)
  except InputError as error:
    raise InputError(
      f"{folder / adapter_folder.CONFIG}: base_model_name_or_path is not to be had:"
      f" {error}"
    ) from error
  if (base_folder / adapter_folder.CONFIG).exists():
    raise InputError(
      f"{folder / adapter_folder.CONFIG}: base_model_name_or_path is {base}, which"
      " holds adapters: must hold a model"
    )
  network, params, tokenizer = load(base)
  flat = by_name(params)
  for name, (a_IR, b_RO) in pairs(adapters).items():
    shape = np.shape(flat.get(name, ()))
    size = (shape[-2], math.prod(shape) // shape[-2]) if len(shape) > 1 else ()
    if size != (len(a_IR), b_RO.shape[1]):
      raise InputError(
        f"{folder / adapter_folder.WEIGHTS} has an adapter of {name} for"
        f" {len(a_IR)} by {b_RO.shape[1]}: the base has {list(shape) or 'no such'}"
      )
  return network, merged(params, adapters, scales), tokenizer


def load_dataset(workdir: pathlib.Path) -> Dataset | None:
  """What a run was trained on; None where its data are missing or have changed."""
  config = read_run_config(workdir)
  data = config.data
  if getattr(data, "tokenizer", None) == "init_from":  # which the run has kept
    data = dataclasses.replace(data, tokenizer=str(workdir))
  try:
    dataset = data.make(config.model.context_length)
  except InputError:
    return None
  saved = read_tokenizer(workdir / "tokenizer.json")
  return dataset if same_tokens(dataset.tokenizer, saved) else None


def load_params(name: str, abstract: Any) -> Any:
  """The parameters of `load`, laid out over devices as `abstract` says.

  Where the source has a longer context than `abstract`, its later positions are left
  out.
  """
  _, params, _ = load(name)

  def fit(leaf: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
    cut = np.asarray(leaf[: like.shape[0]])
    return put_parts(cut, like.sharding)

  return jax.tree.map(fit, params, abstract)
