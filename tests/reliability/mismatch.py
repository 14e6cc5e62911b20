"""What was saved from one model is refused for another, not made to fit."""

from collections.abc import Iterator
import json
import pathlib
import random
import shutil

import jax
from ml_collections import ConfigDict
import numpy as np
from safetensors.numpy import load_file, save_file

from configs import toy
from gpt2_flax import GPT2, InputError, pretrained
from gpt2_flax.training import loop
from gpt2_flax.training.checkpoints import Checkpoints
from gpt2_flax.training.config import CheckpointConfig
from gpt2_flax.training.experiment import parse
from gpt2_flax.training.mesh import one_device_mesh
from gpt2_flax.training.optimizer import make_optimizer
from gpt2_flax.training.source import load_params, load_run
from gpt2_flax.training.step import abstract_state, TrainState
from tests.reliability.campaign import Tally

# A key of the config, and what it is changed to
CHANGES = [
  ("model.num_layers", 1),
  ("model.num_layers", 3),
  ("model.num_heads", 1),
  ("model.num_heads", 4),
  ("model.embed_dim", 4),
  ("model.embed_dim", 16),
  ("model.mlp_dim", 8),
  ("model.mlp_dim", 33),
  ("model.vocab_size", 71),
  ("model.vocab_size", 128),
  ("model.feed_forward", False),
  ("model.positional_encoding", "learned"),
  ("optimizer.name", "lion"),
  ("optimizer.name", "adamw"),
]
DTYPES = ("bfloat16", "float16", "int32", "uint32")
GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def refused(folder: pathlib.Path, chance: random.Random, full: bool) -> Tally:
  """Row 9: runs under an edited config, arrays of another dtype, others' weights."""
  tally, workdir = Tally(), folder / "run"
  loop.train(*parse(_config()), workdir)
  before = _content(workdir)
  changes = [dict([change]) for change in CHANGES]
  if full:  # two at once as well
    changes += [a | b for a in changes for b in changes if [*a] < [*b]]
  for change in changes if full else chance.sample(changes, 2):
    with tally.attempt(f"a run with {change}"):
      _assert_run_refused(workdir, change)
  _write_config(workdir, _config())

  leaves = jax.tree.leaves(_abstract(_config()))
  for number in range(len(leaves)) if full else chance.sample(range(len(leaves)), 2):
    for dtype in DTYPES:
      if str(leaves[number].dtype) != dtype:
        with tally.attempt(f"array {number} as {dtype}"):
          _assert_dtype_refused(workdir, number, dtype)
  with tally.attempt("all of it"):
    assert _content(workdir) == before, "something of the run was changed"

  for name in ("plain", "untied", "sharded", "old"):
    files = _tensors(GOLDEN / name)
    tensors = sorted(files) if full else chance.sample(sorted(files), 1)
    for tensor in tensors:
      for what, changed in _others(load_file(files[tensor])[tensor]):
        with tally.attempt(f"weights {name} with {tensor} {what}"):
          _assert_weights_refused(folder / "weights", files[tensor], tensor, changed)
  return tally


def _config(change: dict | None = None) -> ConfigDict:
  values = toy.get_config()
  values.model.update(num_layers=2, num_heads=2, embed_dim=8, context_length=8)
  values.train.update(num_steps=1, batch_size=2)
  values.eval.update(num_windows=2, sample_tokens=0)
  values.update_from_flattened_dict(change or {})
  return values


def _abstract(values: ConfigDict) -> TrainState:
  config, _ = parse(values)
  optimizer = make_optimizer(config.optimizer, lambda step: 0.0)
  return abstract_state(GPT2(config.model), optimizer, one_device_mesh())


def _write_config(workdir: pathlib.Path, values: ConfigDict) -> None:
  text = json.dumps(parse(values)[0].to_dict(), indent=2) + "\n"
  (workdir / "config.json").write_text(text)


def _content(workdir: pathlib.Path) -> dict[pathlib.Path, bytes]:
  return {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def _assert_run_refused(workdir: pathlib.Path, change: dict) -> None:
  """The config was edited, in the workdir too, so that only the arrays tell."""
  values = _config(change)
  _write_config(workdir, values)
  saved, wanted = _abstract(_config()), _abstract(values)
  for use in (
    lambda: loop.train(*parse(values), workdir),
    lambda: load_run(workdir),
    lambda: load_params(str(workdir), wanted.params),  # init_from
  ):
    _assert_names(_refusal(use), saved, wanted)


def _assert_dtype_refused(workdir: pathlib.Path, number: int, dtype: str) -> None:
  saved = _abstract(_config())
  leaves, tree = jax.tree.flatten(saved)
  like = leaves[number]
  leaves[number] = jax.ShapeDtypeStruct(like.shape, dtype, sharding=like.sharding)
  wanted = jax.tree.unflatten(tree, leaves)
  keep = CheckpointConfig(every_steps=1, keep=2)
  with Checkpoints(workdir / "checkpoints", keep) as checkpoints:
    _assert_names(_refusal(lambda: checkpoints.restore(wanted)), saved, wanted)


def _refusal(use) -> str:
  """The one line that it gives."""
  try:
    use()
  except InputError as error:
    line = str(error)
  else:
    raise AssertionError("nothing was refused")
  assert "\n" not in line, line
  return line


def _assert_names(line: str, saved: TrainState, wanted: TrainState) -> None:
  """The first array wanted that is another, else the first that is too much."""
  saved, wanted = _arrays(saved), _arrays(wanted)
  different = [name for name in wanted if saved.get(name) != wanted[name]]
  different += [name for name in saved if name not in wanted]
  for arrays in (saved, wanted):
    if different[0] in arrays:
      shape, dtype = arrays[different[0]]
      assert f"{dtype}{list(shape)}" in line, line
  assert f" {different[0]} is " in line, line


def _arrays(state: TrainState) -> dict[str, tuple]:
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): (leaf.shape, leaf.dtype)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }


def _tensors(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """The file that each tensor is in; but for constants, which nobody reads."""
  return {
    name: path
    for path in folder.glob("model*.safetensors")
    for name in load_file(path)
    if not name.endswith((".attn.bias", ".attn.masked_bias"))
  }


def _others(tensor: np.ndarray) -> Iterator[tuple[str, np.ndarray | None]]:
  yield "missing", None
  for dtype in ("float64", "int32", "uint8"):
    yield f"as {dtype}", tensor.astype(dtype)
  yield "with a row more", np.concatenate([tensor, tensor[:1]])
  yield "with a row less", tensor[:-1]
  yield "with an axis more", tensor[None]
  if tensor.ndim > 1:
    yield "flat", tensor.ravel()
    yield "with a column less", tensor[:, :-1]
    if len(set(tensor.shape)) > 1:
      yield "transposed", tensor.T


def _assert_weights_refused(
  scratch: pathlib.Path, file: pathlib.Path, tensor: str, changed: np.ndarray | None
) -> None:
  shutil.rmtree(scratch, ignore_errors=True)
  shutil.copytree(file.parent, scratch)
  weights = load_file(file)
  del weights[tensor]
  if changed is not None:
    weights[tensor] = np.ascontiguousarray(changed)
  save_file(weights, scratch / file.name, {"format": "pt"})
  line = _refusal(lambda: pretrained.load(scratch))
  assert tensor.removeprefix("transformer.") in line, line
