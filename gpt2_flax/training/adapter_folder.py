"""Adapters as the `peft` library keeps them: a small folder that names its base.

In it are adapter_config.json and adapter_model.safetensors. PEFT's modules are those of
Hugging Face's GPT-2, where query, key and value are one, `attn.c_attn`. Ours have an
adapter each, as in the paper. Together they are one of c_attn: its A holds theirs one
below the other, and its B has theirs as blocks, with zeros between.

Axes: I what goes in, O what comes out, R rank.
"""

from collections.abc import Sequence
import contextlib
import json
import pathlib
import re
import sys
from typing import Any

import jax
import numpy as np
from safetensors import safe_open, SafetensorError
import safetensors.numpy

from gpt2_flax.errors import InputError
from gpt2_flax.files.atomic import replacing, write_text
from gpt2_flax.files.json import read_json
from gpt2_flax.pretrained import BLOCK_TENSORS, FLOATS
from gpt2_flax.training.lora import IN, nested, OUT, pairs

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PARTS = ("query", "key", "value")
# Their module in a block: our kernels in it
MODULES = {
  theirs.removesuffix(".weight"): [ours.replace("*", part) for part in PARTS]
  if "*" in ours
  else [ours]
  for theirs, (ours, _) in BLOCK_TENSORS.items()
  if ours.endswith("kernel")
}
TENSOR = re.compile(
  rf"base_model\.model\.(?:transformer\.)?h\.(\d{{1,4}})\."
  rf"({'|'.join(map(re.escape, MODULES))})\.lora_([AB])\.weight"
)
# What changes the sum W + alpha / r * B A, or comes beside it
UNKNOWN = (
  "alora_invocation_tokens",
  "layer_replication",
  "lora_bias",
  "modules_to_save",
  "target_parameters",
  "trainable_token_indices",
  "use_dora",
  "use_rslora",
)


def unnamed(kernels: list[str]) -> list[str]:
  """Those for which PEFT has no name, since GPT-2 has no such kernel."""
  known = {ours for group in MODULES.values() for ours in group}
  return [name for name in kernels if name.partition("/")[2] not in known]


def save(
  folder: pathlib.Path, adapters: Any, rank: int, alpha: float, base: str
) -> None:
  """Writes a folder that `PeftModel.from_pretrained` opens; `load` reads it too.

  Args:
    adapters: as `lora.new_adapters` gives them, none of them `unnamed`.
    base: the folder or hub id of the weights that they stand beside.
  """
  found = jax.device_get(pairs(adapters))
  tensors, targets, ranks, alphas = {}, [], {}, {}
  for block in sorted({name.partition("/")[0] for name in found}):
    for module, ours in MODULES.items():
      parts = [found.get(f"{block}/{kernel}") for kernel in ours]
      count = sum(part is not None for part in parts)
      if not count:
        continue
      name = f"h.{block.removeprefix('blocks_')}.{module}"
      targets.append(f"transformer.{name}")
      if count > 1:
        ranks[name], alphas[name] = count * rank, count * alpha
      a_RI, b_OR = _as_one(parts)
      tensors[f"base_model.model.transformer.{name}.lora_A.weight"] = a_RI
      tensors[f"base_model.model.transformer.{name}.lora_B.weight"] = b_OR
  values = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base or None,
    "r": rank,
    "lora_alpha": alpha,
    "rank_pattern": ranks,
    "alpha_pattern": alphas,
    "target_modules": targets,
    "fan_in_fan_out": True,  # their kernels are [in, out], like ours
    "lora_dropout": 0.0,
    "bias": "none",
    "inference_mode": True,
  }
  folder.mkdir(parents=True, exist_ok=True)
  with replacing(folder / WEIGHTS) as temporary:
    temporary.write_bytes(safetensors.numpy.save(tensors, {"format": "pt"}))
  write_text(folder / CONFIG, json.dumps(values, indent=2) + "\n")


def _as_one(
  parts: Sequence[tuple[np.ndarray, np.ndarray] | None],
) -> tuple[np.ndarray, np.ndarray]:
  """A [R, I] and B [O, R] of several kernels side by side; None: this one has none."""
  present = [part for part in parts if part is not None]
  num_out, rank = present[0][1].shape[::-1]
  b_OR = np.zeros((len(parts) * num_out, len(present) * rank), np.float32)
  column = 0
  for row, part in enumerate(parts):
    if part is not None:
      rows = slice(row * num_out, (row + 1) * num_out)
      b_OR[rows, column : column + rank] = part[1].T
      column += rank
  # the file takes arrays as they lie in memory
  a_RI = np.ascontiguousarray(np.concatenate([a_IR.T for a_IR, _ in present]))
  return a_RI, b_OR


def load(folder: pathlib.Path) -> tuple[str, Any, dict[str, float]]:
  """The base's folder or hub id, the adapters, and the scale of each by its kernel.

  PEFT's own c_attn has one A for query, key and value; here each gets a copy.

  Raises:
    InputError: names the file, the key or the tensor that cannot be used.
  """
  config = _read_config(folder / CONFIG)
  halves: dict[tuple[str, str], dict[str, np.ndarray]] = {}
  for (layer, module, half), value in _read_tensors(folder / WEIGHTS).items():
    halves.setdefault((layer, module), {})[half] = value
  flat, scales = {}, {}
  for (layer, module), both in halves.items():
    name, ours = f"transformer.h.{layer}.{module}", MODULES[module]
    if len(both) < 2:
      raise InputError(f"{folder / WEIGHTS}: {name} has lora_{min(both)} only")
    a_RI, b_OR = both["A"], both["B"]
    rank = _of_module(config, "rank_pattern", name, config["r"])
    if not len(a_RI) == b_OR.shape[1] == rank or len(b_OR) % len(ours):
      raise InputError(
        f"{folder / WEIGHTS}: {name} is {list(b_OR.shape)} by {list(a_RI.shape)}: must"
        f" be of rank {rank}, as {CONFIG} says, and of {len(ours)} equal parts"
      )
    alpha = _of_module(config, "alpha_pattern", name, config["lora_alpha"])
    for kernel, part in zip(ours, np.split(b_OR, len(ours)), strict=True):
      beside = f"blocks_{int(layer)}/{kernel.removesuffix('kernel')}"
      flat[beside + IN], flat[beside + OUT] = a_RI.T, part.T
      scales[beside + "kernel"] = alpha / rank
  return config["base_model_name_or_path"], nested(flat), scales


def _read_config(path: pathlib.Path) -> dict[str, Any]:
  """PEFT's config, with every key that is used here checked."""
  config = read_json(path)
  for key, kind, allowed in (
    ("peft_type", str, "LORA"),
    ("base_model_name_or_path", str, "the folder or the hub id of the weights"),
    ("r", int, "an integer"),
    ("lora_alpha", (int, float), "a finite number"),
  ):
    value = config.get(key)
    if not isinstance(value, kind) or (kind is not str and not _is_finite(value)):
      raise InputError(f"{path}: {key} is {value!r}: must be {allowed}")
  if config["peft_type"] != "LORA":
    raise InputError(f"{path}: peft_type is {config['peft_type']!r}: must be LORA")
  if config.get("bias", "none") != "none":
    raise InputError(f"{path}: bias is {config['bias']!r}: must be none")
  for key in UNKNOWN:
    if config.get(key):
      raise InputError(f"{path}: {key} is {config[key]!r}: must be left out")
  for key in ("rank_pattern", "alpha_pattern"):
    pattern = config.setdefault(key, {})
    if not isinstance(pattern, dict) or not all(map(_is_finite, pattern.values())):
      raise InputError(f"{path}: {key} must be an object of finite numbers")
  return config


def _is_finite(value: Any) -> bool:
  """Whether it is a number that a float can hold; JSON has others."""
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  return is_number and abs(value) <= sys.float_info.max


def _of_module(config: dict[str, Any], key: str, name: str, default: Any) -> Any:
  """The value of the pattern that is the module's name or the end of it.

  PEFT takes them as regular expressions; those in use are plain names.
  """
  for end, value in config[key].items():
    if f".{name}".endswith(f".{end}"):
      return value
  return default


def _read_tensors(path: pathlib.Path) -> dict[tuple[str, str, str], np.ndarray]:
  """By layer, module and half: float32 [R, I] for A, [O, R] for B."""
  found = {}
  if not path.is_file():
    raise InputError(f"{path} is missing")
  with contextlib.ExitStack() as stack:
    try:
      file = stack.enter_context(safe_open(path, framework="numpy"))
    except (OSError, SafetensorError) as error:
      raise InputError(f"{path} is not a whole safetensors file: {error}") from error
    for name in file.keys():  # noqa: SIM118 (a file, not a dict)
      match, header = TENSOR.fullmatch(name), file.get_slice(name)
      shape, dtype = header.get_shape(), header.get_dtype()
      if not match:
        raise InputError(f"{path}: {name} is no adapter of a kernel of GPT-2")
      if len(shape) != 2 or not all(shape) or dtype not in FLOATS:
        raise InputError(
          f"{path}: {name} is {dtype} {shape}: must be a matrix, of"
          f" {' or '.join(FLOATS)}"
        )
      found[match[1], match[2], match[3]] = file.get_tensor(name).astype(np.float32)
  return found
