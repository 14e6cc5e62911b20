"""Which parameters learn: all, some by their names, or adapters beside all of them.

What does not learn is frozen: it is an input of the training step, not of the gradient,
and the optimizer never sees it.
"""

from collections.abc import Sequence
import dataclasses
import fnmatch
import math
import re
from typing import Any

from flax import linen as nn
import jax
import optax

from gpt2_flax.errors import InputError, nearest, unknown_name
from gpt2_flax.layers.layer_stacking import stack_layers
from gpt2_flax.training.config import FinetuneConfig
from gpt2_flax.training.lora import by_name, merged, nested, new_adapters
from gpt2_flax.transformer import abstract_params, GPT2


@dataclasses.dataclass(frozen=True)
class Tuning:
  """All parameters learn. The other ways are subclasses; all methods are pure.

  Attributes:
    held_apart: whether a training state keeps layers apart, even where the model has
      them stacked.
  """

  held_apart = False

  def split(self, params: Any, key: jax.Array) -> tuple[Any, Any]:
    """What learns, and what is frozen, None if nothing is; `key` draws what is new."""
    del key
    return params, None

  def join(self, learns: Any, frozen: Any) -> Any:
    """The params that the model runs with."""
    del frozen
    return learns

  def stacked(self, state: Any) -> Any:
    """A `TrainState` of layers apart as the scanned model's step takes it."""
    return stack_layers(state)


EVERYTHING = Tuning()


@dataclasses.dataclass(frozen=True)
class Chosen(Tuning):
  """The parameters of these names learn.

  Attributes:
    scanned: whether the model has its layers stacked. Some layers may learn and others
      not, so the state never has.
  """

  names: frozenset[str]
  scanned: bool

  held_apart = True

  def split(self, params: Any, key: jax.Array) -> tuple[Any, Any]:
    del key
    flat = by_name(params)
    learns = {name: flat.pop(name) for name in self.names}
    return nested(learns), nested(flat)

  def join(self, learns: Any, frozen: Any) -> Any:
    params = nested(by_name(frozen) | by_name(learns))
    return stack_layers(params) if self.scanned else params

  def stacked(self, state: Any) -> Any:
    return state


@dataclasses.dataclass(frozen=True)
class Lora(Tuning):
  """Adapters learn: see `lora`.

  Attributes:
    kernels: the name and the shape of each kernel that has one, layers apart.
  """

  kernels: tuple[tuple[str, tuple[int, ...]], ...]
  rank: int
  alpha: float

  def split(self, params: Any, key: jax.Array) -> tuple[Any, Any]:
    return new_adapters(self.kernels, self.rank, jax.random.fold_in(key, 1)), params

  def join(self, learns: Any, frozen: Any) -> Any:
    return merged(frozen, learns, self.alpha / self.rank)

  def stacked(self, state: Any) -> Any:
    return state.replace(frozen=stack_layers(state.frozen))


def make_tuning(config: FinetuneConfig, model: GPT2, scanned: bool = False) -> Tuning:
  """The one that the config describes.

  Args:
    model: with its layers apart.
    scanned: whether the model that runs has them stacked.

  Raises:
    InputError: a pattern matches nothing, or a kernel cannot have an adapter.
  """
  if not config.train and not config.lora:
    return EVERYTHING
  params = nn.meta.unbox(abstract_params(model))
  shapes = {name: leaf.shape for name, leaf in by_name(params).items()}
  if config.train:
    names = _matching("finetune.train", config.train, list(shapes))
    return Chosen(frozenset(names), scanned) if len(names) < len(shapes) else EVERYTHING
  kernels = [name for name in shapes if name.endswith("/kernel")]
  names = _matching("finetune.lora", config.lora, kernels)
  for name in names:
    if len(shapes[name]) > 3:
      raise InputError(
        f"finetune.lora has {name}, which is {list(shapes[name])}: must be a matrix, or"
        " one for each head"
      )
    inputs = shapes[name][-2]
    most = min(inputs, math.prod(shapes[name]) // inputs)
    if config.lora_rank > most:
      raise InputError(
        f"finetune.lora_rank is {config.lora_rank}: must be at most {most}, the rank of"
        f" {name}"
      )
  kernels = tuple((name, shapes[name]) for name in names)
  return Lora(kernels, config.lora_rank, config.lora_alpha)


def _matching(field: str, patterns: str, names: Sequence[str]) -> list[str]:
  """The names that at least one of the patterns matches, sorted."""
  chosen = set()
  for pattern in map(str.strip, patterns.split(",")):
    found = _matched(pattern, names)
    if not found:
      raise _no_match(field, pattern, names)
    chosen.update(found)
  return sorted(chosen)


def _matched(pattern: str, names: Sequence[str]) -> list[str]:
  return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def _no_match(field: str, pattern: str, names: Sequence[str]) -> InputError:
  """Lists the names, all layers as one, with what was perhaps meant."""
  general = list(dict.fromkeys(re.sub(r"_\d+/", "_*/", name) for name in names))
  near = [pattern.replace(".*", "*"), f"{pattern}/*", f"*/{pattern}"]
  near = [other for other in near if _matched(other, names)][:1]
  near = near or [other for other in [nearest(pattern, [*general, *names])] if other]
  return unknown_name(f"pattern in {field}", pattern, general, near)


def scale_by_layer(decay: float, num_layers: int) -> optax.GradientTransformation:
  """Multiplies a layer's updates by `decay` once for each layer above it.

  So the top block and what comes after it learn at the full rate, and the embeddings
  at rate * decay**num_layers: "Universal Language Model Fine-tuning" (Howard & Ruder,
  2018), section 3.2, "discriminative fine-tuning".

  Args:
    num_layers: of the whole model.
  """

  def factor(path: tuple, ndim: int) -> Any:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    name = name.removeprefix("params/").partition("/")[0]
    if name in ("token_embedding", "positional_encoding"):
      return decay**num_layers
    if name == "blocks":  # stacked: a factor for each
      above = [num_layers - 1 - layer for layer in range(num_layers)]
      return jax.numpy.array([decay**n for n in above]).reshape(-1, *[1] * (ndim - 1))
    if match := re.fullmatch(r"blocks_(\d+)", name):
      return decay ** (num_layers - 1 - int(match[1]))
    return 1.0

  def update(updates: Any, params: Any) -> Any:
    del params
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf: leaf * factor(path, leaf.ndim), updates
    )

  return optax.stateless(update)
