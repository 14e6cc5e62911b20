"""A folder as Hugging Face lays it out: its files, its weights, its config.json.

Nothing in it is trusted. No weight is read here, only the files, names, shapes and
types of tensors; `pretrained` knows what they mean.
"""

import functools
import hashlib
import os
import pathlib
import re
from typing import Any, NamedTuple

from absl import logging
import numpy as np
from safetensors import safe_open, SafetensorError

from gpt2_flax.errors import InputError, unknown_name
from gpt2_flax.files.json import read_json
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.tokenizer import BPETokenizer, Tokenizer
from gpt2_flax.tokenizer.hub_files import BESIDE, CONFIG, MERGES, TEMPLATE, VOCAB

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
HUB_FILES = (CONFIG, WEIGHTS, INDEX, "model-*.safetensors", TOKENIZER)
HUB_FILES += (VOCAB, MERGES, *BESIDE, TEMPLATE)
HUB_FILES += ("adapter_config.json", "adapter_model.safetensors")  # PEFT's

# Their key in config.json: (our field, what leaving the key out means).
CONFIG_KEYS = {
  "vocab_size": ("vocab_size", 50_257),
  "n_positions": ("context_length", 1024),
  "n_layer": ("num_layers", 12),
  "n_head": ("num_heads", 12),
  "n_embd": ("embed_dim", 768),
  "n_inner": ("mlp_dim", 0),  # stored as null: 4 * n_embd
  "activation_function": ("activation", "gelu_new"),
  "layer_norm_epsilon": ("layer_norm_epsilon", 1e-5),
  "tie_word_embeddings": ("tied_embeddings", True),
  "scale_attn_weights": ("scale_attention", True),
  "scale_attn_by_inverse_layer_idx": ("scale_attention_by_layer", False),
}
DROPOUT_KEYS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")  # left out: 0.1
ALIASES = {
  "max_position_embeddings": "n_positions",
  "num_hidden_layers": "n_layer",
  "num_attention_heads": "n_head",
  "hidden_size": "n_embd",
}
ACTIVATIONS = {
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu": "gelu",
  "relu": "relu",
}


class StoredTensor(NamedTuple):
  """A tensor in a file.

  Attributes:
    path: of the file.
    name: in the file.
    shape: as the header has it.
    dtype: as the header has it: "F32", "BF16", ...
  """

  path: pathlib.Path
  name: str
  shape: list[int]
  dtype: str

  def read(self) -> np.ndarray:
    """The values; nothing else here reads any.

    The file is opened for each tensor, since all that was read of an open one counts
    as memory of this process until it is closed.
    """
    with safe_open(self.path, framework="numpy") as file:
      return file.get_tensor(self.name)


def find_folder(name_or_path: str) -> pathlib.Path:
  """The folder of that name, or else the hub's repository, downloaded and checked."""
  folder = pathlib.Path(name_or_path)
  try:
    if folder.is_file():
      raise InputError(f"{folder} is a file: must be the folder that holds the weights")
    if folder.exists():
      return folder
  except OSError as error:
    raise InputError(f"{folder} cannot be read: {error.strerror}") from error
  import huggingface_hub  # slow to import, and a folder does not need it
  from huggingface_hub.utils import HFValidationError, validate_repo_id

  try:
    validate_repo_id(name_or_path)
  except HFValidationError as error:
    raise InputError(f"{name_or_path}: there is no such folder") from error
  try:
    folder = pathlib.Path(
      huggingface_hub.snapshot_download(name_or_path, allow_patterns=list(HUB_FILES))
    )
  except Exception as error:  # whatever its network library raises, too
    reason = (str(error).strip() or repr(error)).splitlines()[0]
    raise InputError(
      f"{name_or_path}: no such folder, and not to be had from the Hugging Face hub"
      f" ({reason})"
    ) from error
  for path in folder.iterdir():
    if path.is_symlink():
      _check_download(path.parent / path.readlink())
  return folder


@functools.cache  # once in a process: it reads the whole file
def _check_download(path: pathlib.Path) -> None:
  """Raises an InputError unless a file of the hub's cache is what the hub said it is.

  Its name there is the hub's checksum: SHA-256 of what lies in large file storage, and
  of other files git's SHA-1 of a blob. The download itself compares sizes only.
  """
  match len(path.name):
    case 64:
      digest = hashlib.sha256()
    case 40:
      digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    case _:
      return
  with path.open("rb") as file:
    whole = hashlib.file_digest(file, lambda: digest).hexdigest() == path.name
  if not whole:
    path.unlink()
    raise InputError(
      f"{path} was not what the hub has under that checksum, and is deleted: try again"
    )


def require_new(folder: str | os.PathLike) -> pathlib.Path:
  """The whole path of a folder to be written; an InputError if something is in it."""
  folder = pathlib.Path(folder).resolve()
  if os.path.exists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
    raise InputError(f"{folder} is not empty: choose a new folder")
  return folder


def find_weights(folder: pathlib.Path) -> dict[str, StoredTensor]:
  """Every tensor by its name.

  Raises:
    InputError: there are no safetensors, a file is damaged or missing, or the index
      of a sharded model does not agree with the shards.
  """
  if (folder / WEIGHTS).is_file():
    return _read_header(folder / WEIGHTS)
  if not (folder / INDEX).is_file():
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    which = f"{pickles[0]} is a pickle, which is" if pickles else "pickles (.bin) are"
    old = f'("{folder if pickles else "NAME"}")'
    raise InputError(
      f"{folder} has neither {WEIGHTS} nor {INDEX}: {which} never read. transformers"
      f" makes a folder NEW of it: GPT2LMHeadModel.from_pretrained{old}"
      f'.save_pretrained("NEW"); AutoTokenizer.from_pretrained{old}'
      '.save_pretrained("NEW")'
    )
  shard_of = _read_index(folder / INDEX)
  stored = {}
  for shard in sorted(set(shard_of.values())):
    for name, tensor in _read_header(folder / shard).items():
      if shard_of.get(name) != shard:
        raise InputError(
          f"{folder / INDEX}: {name} is in {shard}, the index says"
          f" {shard_of.get(name, 'nothing of it')}"
        )
      stored[name] = tensor
  for name, shard in shard_of.items():
    if name not in stored:
      raise InputError(f"{folder / INDEX}: {name} is not in {shard}")
  return stored


def _read_index(path: pathlib.Path) -> dict[str, str]:
  """Tensor -> shard; each shard is the bare name of a file beside the index."""
  shard_of = read_json(path).get("weight_map")
  if not isinstance(shard_of, dict):
    raise InputError(f"{path} has no weight_map")
  for name, shard in shard_of.items():
    if not (isinstance(shard, str) and re.fullmatch(r"[\w.-]+\.safetensors", shard)):
      raise InputError(
        f"{path}: {name} is in {shard!r}: must be a .safetensors file in this folder"
      )
  return shard_of


def _read_header(path: pathlib.Path) -> dict[str, StoredTensor]:
  if not os.path.isfile(path):  # pathlib would raise where a name is too long
    raise InputError(f"{path} is missing")
  try:
    with safe_open(path, framework="numpy") as file:
      headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
      return {
        name: StoredTensor(path, name, header.get_shape(), header.get_dtype())
        for name, header in headers.items()
      }
  except (OSError, SafetensorError) as error:
    raise InputError(f"{path} is not a whole safetensors file: {error}") from error


def read_config(path: pathlib.Path) -> GPT2Config:
  """Their config as ours; an InputError names the key that has no counterpart."""
  found = read_json(path)
  if found.get("model_type") != "gpt2":
    raise InputError(f"{path}: model_type is {found.get('model_type')!r}: must be gpt2")
  for alias, key in ALIASES.items():
    if alias in found and found.setdefault(key, found[alias]) != found[alias]:
      raise InputError(f"{path}: {alias} is {found[alias]}, but {key} is {found[key]}")
  if found.get("n_inner", 0) is None:
    del found["n_inner"]

  def checked(key: str, default: Any) -> Any:
    value = found.get(key, default)
    if type(default) is float and type(value) is int and 0 <= value <= 1:
      value = float(value)
    if type(value) is not type(default):
      kind = type(default).__name__
      raise InputError(f"{path}: {key} is {value!r}: must be of type {kind}")
    if type(value) is int and key in found and value < 1:
      raise InputError(f"{path}: {key} is {value}: must be at least 1")
    return value

  if checked("add_cross_attention", False):
    raise InputError(f"{path}: add_cross_attention is true: must be false")
  fields = {
    ours: checked(theirs, default) for theirs, (ours, default) in CONFIG_KEYS.items()
  }
  if fields["activation"] not in ACTIVATIONS:
    raise unknown_name(
      f"activation_function in {path}", fields["activation"], ACTIVATIONS
    )
  fields["activation"] = ACTIVATIONS[fields["activation"]]
  rates = {key: checked(key, 0.1) for key in DROPOUT_KEYS}
  fields["dropout_rate"] = rates["resid_pdrop"]
  if len(set(rates.values())) > 1:
    logging.warning("%s: dropout rates differ, so none is used: %s", path, rates)
    fields["dropout_rate"] = 0.0
  try:
    return GPT2Config(positional_encoding="learned", **fields)
  except InputError as error:
    raise InputError(f"{path}: {error}") from error


def config_json(
  config: GPT2Config, tokenizer: Tokenizer | None, dtype: str
) -> dict[str, Any]:
  """Our config as theirs, with the dtype of the weights and the ids around a text."""
  values = {theirs: getattr(config, ours) for theirs, (ours, _) in CONFIG_KEYS.items()}
  values["n_inner"] = config.mlp_dim or None
  values["activation_function"] = next(
    theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation
  )
  values |= dict.fromkeys(DROPOUT_KEYS, config.dropout_rate)
  if tokenizer is None:  # all that can be known is GPT-2's own vocabulary
    end_of_text = 50_256 if config.vocab_size == 50_257 else None
    ids = {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
  else:
    beside = tokenizer.beside if isinstance(tokenizer, BPETokenizer) else {}
    ids = beside.get(CONFIG) or token_ids(tokenizer)
  return {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    **values,
    "n_ctx": config.context_length,  # what llama.cpp's converter asks for
    **ids,
    "dtype": dtype,
    "torch_dtype": dtype,  # as it was called before
  }


def token_ids(tokenizer: Tokenizer) -> dict[str, int | None]:
  """What begins, ends and fills up a text; where there is one token, it does all."""
  ends, starts = tokenizer.end_of_text_id, tokenizer.start_id
  ends = starts if ends is None else ends
  starts = ends if starts is None else starts
  return {"bos_token_id": starts, "eos_token_id": ends, "pad_token_id": ends}
