"""From a config to an experiment that can begin: its data, weights and sizes known."""

import dataclasses
import pathlib
from typing import Any

from ml_collections import ConfigDict

from gpt2_flax import datasets
from gpt2_flax.errors import InputError
from gpt2_flax.hub.folder import find_folder
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.self_attention import HEADS
from gpt2_flax.tokenizer import (
  KINDS,
  read_tokenizer,
  same_tokens,
  Tokenizer,
  tokenizer_file,
)
from gpt2_flax.training.config import ExperimentConfig, from_section, parse_sections
from gpt2_flax.training.source import source_config


def parse(config: ConfigDict) -> tuple[ExperimentConfig, datasets.Dataset]:
  """Checks a whole config, and makes its dataset, which decides the vocabulary.

  Raises:
    InputError: names the key, its value and what is allowed. Nothing was written.
  """
  values = config.to_dict()
  sections = parse_sections(values)
  data, model_values = sections["data"], values["model"]
  source = sections["init_from"]
  folder = find_folder(source) if source else None
  if folder:
    model_values = _with_source(model_values, source_config(folder))
  if getattr(data, "tokenizer", None) == "init_from":
    if not folder:
      raise InputError("data.tokenizer is 'init_from', but init_from is empty")
    data = dataclasses.replace(data, tokenizer=str(folder))
  known = {k: v for k, v in model_values.items() if k != "vocab_size" or v}
  model = from_section(GPT2Config, "model", known)
  dataset = data.make(model.context_length)
  if isinstance(dataset, datasets.ToyLanguage) and not sections["eval"].num_windows:
    raise InputError(
      "eval.num_windows is 0 (all): must be at least 1 for"
      f" data.name={data.name}, which is endless"
    )
  if "vocab_size" not in known:
    model = dataclasses.replace(model, vocab_size=dataset.tokenizer.vocab_size)
  if model.vocab_size < dataset.tokenizer.vocab_size:
    raise InputError(
      f"model.vocab_size is {model.vocab_size}: must be 0 (the data's) or at least"
      f" {dataset.tokenizer.vocab_size}, the data's"
    )
  if folder:
    _require_same_tokens(dataset.tokenizer, folder)
  own = {
    "data": datasets.CONFIGS.needs(data.name),
    "tokenizer": KINDS.needs(dataset.tokenizer.kind),
    "attention": HEADS.needs(model.attention),
  }
  own = {what: where for what, where in own.items() if where}
  return ExperimentConfig(model=model, own=own, **sections), dataset


FREE_OF_WEIGHTS = ("attention", "dropout_rate", "dtype", "scan_layers", "remat")


def _with_source(values: dict[str, Any], source: GPT2Config) -> dict[str, Any]:
  """The model's keys, from the weights' own where a key is not given or is 0."""
  merged = dataclasses.asdict(source)
  for name, value in values.items():
    if name in FREE_OF_WEIGHTS or name not in merged:
      merged[name] = value  # does not concern the weights, or is refused later
    elif name == "context_length" and type(value) is int and value:
      if value > source.context_length:
        raise InputError(
          f"model.context_length is {value}: must be at most {source.context_length},"
          " as in init_from"
        )
      merged[name] = value  # the weights of later positions are cropped
    elif value != merged[name] and (value or type(value) is not int):
      raise InputError(
        f"model.{name} is {value!r}: must be {merged[name]!r}, as in init_from"
      )
  return merged


def _require_same_tokens(tokenizer: Tokenizer, folder: pathlib.Path) -> None:
  if not same_tokens(tokenizer, read_tokenizer(tokenizer_file(folder))):
    raise InputError(
      "the data's tokens are not those that the weights were trained on: for text, set"
      " data.tokenizer to init_from"
    )
