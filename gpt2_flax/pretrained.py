"""6. Published weights, in and out: the same model in Hugging Face's folder layout.

    model, params = load("openai-community/gpt2")
    save("folder", model, params)

A folder holds config.json and model.safetensors, or shards and an index of them. The
names and shapes in their headers are compared with the config before any value is
read; then one tensor is read at a time. Pickles (pytorch_model.bin) are never opened:
reading one runs the code in it.

Axes: T position, H heads, K head_dim, D embed_dim, F mlp_dim, V vocab_size.
"""

from collections.abc import Mapping
import dataclasses
import json
import math
import os
import pathlib
import re
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from gpt2_flax.errors import InputError, unknown_name
from gpt2_flax.files.atomic import replacing
from gpt2_flax.hub.folder import (
  CONFIG,
  config_json,
  find_folder,
  find_weights,
  read_config,
  require_new,
  StoredTensor,
  WEIGHTS,
)
from gpt2_flax.hub.tokenizer import write_tokenizer
from gpt2_flax.layers.layer_norm import layer_norm
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.positional_encoding import PositionalEncoding
from gpt2_flax.self_attention import FlashSelfAttention, HEADS, SelfAttention
from gpt2_flax.tokenizer import read_tokenizer, Tokenizer, tokenizer_file
from gpt2_flax.transformer import abstract_params, FeedForward, GPT2

# Their tensor: (our parameter, its axes as stored). Their kernels are [in, out], like
# ours; `*` is query, key and value, which they keep side by side in one tensor.
OUTER_TENSORS = {
  "wte.weight": ("token_embedding/embedding", "V D"),
  "wpe.weight": ("positional_encoding/embedding/embedding", "T D"),
  "ln_f.weight": ("final_norm/scale", "D"),
  "ln_f.bias": ("final_norm/bias", "D"),
}
BLOCK_TENSORS = {
  "ln_1.weight": ("attention_norm/scale", "D"),
  "ln_1.bias": ("attention_norm/bias", "D"),
  "attn.c_attn.weight": ("attention/heads/*/kernel", "D 3D"),
  "attn.c_attn.bias": ("attention/heads/*/bias", "3D"),
  "attn.c_proj.weight": ("attention/output/kernel", "D D"),
  "attn.c_proj.bias": ("attention/output/bias", "D"),
  "ln_2.weight": ("feed_forward_norm/scale", "D"),
  "ln_2.bias": ("feed_forward_norm/bias", "D"),
  "mlp.c_fc.weight": ("feed_forward/expand/kernel", "D F"),
  "mlp.c_fc.bias": ("feed_forward/expand/bias", "F"),
  "mlp.c_proj.weight": ("feed_forward/contract/kernel", "F D"),
  "mlp.c_proj.bias": ("feed_forward/contract/bias", "D"),
}
OUTPUT_TENSOR = {"lm_head.weight": ("output_embedding/embedding", "V D")}
PREFIX = "transformer."  # of all but lm_head.weight; some files leave it out
MASKS = re.compile(r"h\.\d+\.attn\.(masked_)?bias")  # constants that old files hold
OWN_HEADS = (SelfAttention, FlashSelfAttention)  # which the format means
FLOATS = ("F32", "F16", "BF16")  # that are read
STORED_AS = ("float32", "bfloat16")  # that are written


def load(name_or_path: str | os.PathLike) -> tuple[GPT2, Any]:
  """The model in a folder, or in a repository of the Hugging Face hub.

  Values are float32, whatever they are stored as. Our config has one dropout rate.
  Where theirs has several, the model gets no dropout, and a warning says so.

  Args:
    name_or_path: a folder where there is one of that name, else the id of a
      repository ("openai-community/gpt2-medium"), which is downloaded once.

  Returns:
    The model, and params as `model.init` would give them, without the axis names.

  Raises:
    InputError: names the file, the key or tensor, what was found and expected.
  """
  folder = find_folder(os.fspath(name_or_path))
  config = read_config(folder / CONFIG)
  stored = _without_prefix(find_weights(folder))
  layout, flat = _check(stored, config, folder), {}
  # The largest first: while it is there twice, there is not much else.
  for name in sorted(layout, key=lambda name: -math.prod(stored[name].shape)):
    ours, value = layout[name][0], stored[name].read()
    values = _split(value, config) if "*" in ours else [value]
    for part, part_value in zip(_parts(ours), values, strict=True):
      # a copy, so that `value` does not stay in memory; waited for, for the same reason
      copied = jax.device_put(
        part_value.astype(np.float32, copy=False), may_alias=False
      )
      flat[part] = jax.block_until_ready(copied)
  if config.tied_embeddings and "lm_head.weight" in layout:
    output = flat.pop("output_embedding/embedding")
    if not jnp.array_equal(output, flat["token_embedding/embedding"]):
      raise InputError(
        f"{folder / CONFIG}: tie_word_embeddings is true: lm_head.weight must be"
        " equal to wte.weight, or not there"
      )
  return GPT2(config), {"params": traverse_util.unflatten_dict(flat, sep="/")}


def save(
  folder: str | os.PathLike,
  model: GPT2,
  params: Any,
  tokenizer: Tokenizer | None = None,
  dtype: str = "float32",
) -> None:
  """Writes a folder that `load` reads, and transformers' `from_pretrained`.

  Positions that are not learned are written as a table of their values. With
  sinusoidal ones the token embeddings are written twice, since they are scaled as
  inputs only. The config's dtype, that of activations, is not written.

  Args:
    folder: new or empty. It appears when all its files are written.
    params: as `load` or `model.init` gives them.
    tokenizer: goes out with all that came in with it.
    dtype: of the weights in the file: "float32", or "bfloat16" for half of its size.

  Raises:
    InputError: there is something in the folder, it cannot be written, params are
      not this model's, the tokenizer has tokens that the model does not know, or
      GPT-2's format cannot express the model.
    RunError: the disk is full.
  """
  if dtype not in STORED_AS:
    raise unknown_name("dtype", dtype, STORED_AS)
  _check_expressible(model)
  folder = require_new(folder)
  params = nn.meta.unbox(params)
  _check_params(params, model)
  if tokenizer is not None:
    tokenizer.require_known(model.config.vocab_size, folder)
  config, flat = _with_learned_positions(
    model.config, traverse_util.flatten_dict(params["params"], sep="/")
  )
  tensors = _tensors(config, flat, dtype)
  config_text = json.dumps(config_json(config, tokenizer, dtype), indent=2) + "\n"
  with replacing(folder) as temporary:
    temporary.mkdir()
    (temporary / CONFIG).write_text(config_text, "utf-8")
    safetensors.numpy.save_file(tensors, temporary / WEIGHTS, {"format": "pt"})
    (temporary / WEIGHTS).chmod((temporary / CONFIG).stat().st_mode)  # it was 0600
    if tokenizer is not None:
      write_tokenizer(temporary, tokenizer, config.context_length)


def _layout(config: GPT2Config) -> dict[str, tuple[str, str]]:
  """As OUTER_TENSORS, for all tensors of a model."""
  layout = dict(OUTER_TENSORS)
  for layer in range(config.num_layers):
    for theirs, (ours, axes) in BLOCK_TENSORS.items():
      layout[f"h.{layer}.{theirs}"] = (f"blocks_{layer}/{ours}", axes)
  return layout if config.tied_embeddings else layout | OUTPUT_TENSOR


def _parts(ours: str) -> list[str]:
  if "*" not in ours:
    return [ours]
  return [ours.replace("*", part) for part in ("query", "key", "value")]


def _split(packed: np.ndarray, config: GPT2Config) -> np.ndarray:
  """Queries, keys and values, head by head: [..., 3D] -> [3, H, ..., K]."""
  axes = (*packed.shape[:-1], 3, config.num_heads, config.head_dim)
  return np.moveaxis(packed.reshape(axes), (-3, -2), (0, 1))


def _join(parts: np.ndarray) -> np.ndarray:
  """The inverse of `_split`: [3, H, ..., K] -> [..., 3D]."""
  packed = np.moveaxis(parts, (0, 1), (-3, -2))
  return packed.reshape(*packed.shape[:-3], -1)


def _without_prefix(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
  """The tensors by the names that the tables above have, without old files' masks."""
  renamed = {}
  for full_name, tensor in stored.items():
    name = full_name.removeprefix(PREFIX)
    if name in renamed:
      raise InputError(f"{tensor.path} has both {name} and {PREFIX}{name}")
    if not MASKS.fullmatch(name):
      renamed[name] = tensor
  return renamed


def _check(
  stored: Mapping[str, StoredTensor], config: GPT2Config, folder: pathlib.Path
) -> dict[str, tuple[str, str]]:
  """The layout of the weights, after a check that they are what config says."""
  layers = {match[1] for name in stored if (match := re.match(r"h\.(\d+)\.", name))}
  if len(layers) != config.num_layers:
    raise InputError(
      f"{folder / CONFIG}: n_layer is {config.num_layers}: the weights have"
      f" {len(layers)} layers"
    )
  layout = _layout(config)
  if "lm_head.weight" in stored:
    layout |= OUTPUT_TENSOR  # where tied, a second copy of wte.weight
  sizes = {
    "V": config.vocab_size,
    "T": config.context_length,
    "D": config.embed_dim,
    "3D": 3 * config.embed_dim,
    "F": config.mlp_dim or 4 * config.embed_dim,
  }
  for name, tensor in stored.items():
    if name not in layout:
      raise InputError(
        f"{tensor.path}: {tensor.name} is not part of the model that {CONFIG} describes"
      )
  for name, (_, axes) in layout.items():
    if name not in stored:
      raise InputError(f"{folder}: the weights have no {name}")
    tensor, shape = stored[name], [sizes[axis] for axis in axes.split()]
    where = f"{tensor.path}: {tensor.name}"
    if tensor.shape != shape:
      raise InputError(f"{where} is {tensor.shape}: must be {shape} by {CONFIG}")
    if tensor.dtype not in FLOATS:
      raise InputError(f"{where} is {tensor.dtype}: must be {' or '.join(FLOATS)}")
  return layout


def _check_params(params: Any, model: GPT2) -> None:
  """Raises an InputError unless params are what `model.init` gives."""

  def shapes(params: Any) -> dict[str, tuple[int, ...]]:
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    return {
      jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(leaf)
      for path, leaf in paths
    }

  expected, found = shapes(nn.meta.unbox(abstract_params(model))), shapes(params)
  for name in sorted(expected.keys() | found.keys()):
    if found.get(name) != expected.get(name):
      raise InputError(
        f"params: {name} is {found.get(name, 'missing')}: must be"
        f" {expected.get(name, 'left out')}"
      )


def _check_expressible(model: GPT2) -> None:
  """Raises an InputError for what GPT-2's format cannot express."""
  config = model.config
  for name, part, known in (
    ("model.attention", model.head or HEADS[config.attention], OWN_HEADS),
    ("mlp", model.mlp, (FeedForward,)),
    ("norm", model.norm, (layer_norm,)),
  ):
    if part not in known:
      raise InputError(
        f"{name} is {part.__name__}: must be {' or '.join(p.__name__ for p in known)}"
        " to be saved in GPT-2's format"
      )
  if config.positional_encoding in ("rotary", "alibi"):
    raise InputError(
      f"model.positional_encoding is {config.positional_encoding!r}: must be learned,"
      " sinusoidal or none to be saved in GPT-2's format"
    )
  if not config.causal:
    raise InputError(
      "model.causal is False: must be True to be saved in GPT-2's format"
    )
  if not config.feed_forward:
    raise InputError(
      "model.feed_forward is False: must be True to be saved in GPT-2's format"
    )


def _with_learned_positions(
  config: GPT2Config, flat: Mapping[str, Any]
) -> tuple[GPT2Config, dict[str, Any]]:
  """The same model with learned positions, the only ones in GPT-2's format."""
  if config.positional_encoding == "learned":
    return config, dict(flat)
  encoding = PositionalEncoding(config.positional_encoding)
  positions = jnp.arange(config.context_length)[None]
  table_1TD = encoding.apply({}, positions, config.embed_dim, method="encode")
  learned = dict(flat) | {"positional_encoding/embedding/embedding": table_1TD[0]}
  if config.positional_encoding == "sinusoidal":
    # Our model scales the embeddings as inputs, not as outputs: so two tables.
    embedding_VD = flat["token_embedding/embedding"]
    learned["token_embedding/embedding"] = embedding_VD * config.embed_dim**0.5
    learned.setdefault("output_embedding/embedding", embedding_VD)
    config = dataclasses.replace(config, tied_embeddings=False)
  return dataclasses.replace(config, positional_encoding="learned"), learned


def _tensors(
  config: GPT2Config, flat: Mapping[str, Any], dtype: str
) -> dict[str, np.ndarray]:
  """The parameters under their names, as they are stored."""
  tensors = {}
  for name, (ours, _) in _layout(config).items():
    values = [flat[part] for part in _parts(ours)]
    value = _join(np.stack(values)) if "*" in ours else values[0]
    name = name if name in OUTPUT_TENSOR else PREFIX + name
    tensors[name] = np.ascontiguousarray(value, jnp.dtype(dtype))
  return tensors


def load_tokenizer(name_or_path: str | os.PathLike) -> Tokenizer:
  """The tokenizer that lies beside the weights."""
  return read_tokenizer(tokenizer_file(find_folder(os.fspath(name_or_path))))
