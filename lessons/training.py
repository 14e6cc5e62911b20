"""Small models, trained quietly from several seeds: a sweep that is not kept."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import sys
import tempfile
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs import toy
from gpt2_flax.datasets import Dataset
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.training.config import ExperimentConfig
from gpt2_flax.training.experiment import parse
from gpt2_flax.training.sweep import Member, run_sweep
from gpt2_flax.transformer import GPT2

SEEDS = (0, 1, 2)
NEVER = 1_000_000_000  # but after the last step
QUIET = {
  "eval.sample_tokens": 0,
  "checkpoint.every_steps": NEVER,
  "train.max_skipped_steps": NEVER,  # a lesson judges what a model has come to
}


@dataclasses.dataclass(frozen=True)
class Trained:
  """A model after its last step.

  Attributes:
    params: as `model.init` gives them, without the axis names.
    loss, floor: in nats a token, on the same validation windows for all seeds.
    history: (step, what `watch` returned), every eval.every_steps and at the end.
  """

  model: GPT2
  params: Any
  loss: float
  floor: float
  history: Sequence[tuple[int, Any]]

  @property
  def gap(self) -> float:
    return self.loss - self.floor


def experiment(
  data: Any, changes: Mapping[str, Any]
) -> tuple[ExperimentConfig, Dataset]:
  """configs/toy.py on other data, with some keys changed.

  Args:
    data: a dataclass whose make(context_length) gives a dataset.
    changes: as on train.py's command line: {"model.num_layers": 1}.
  """
  values = toy.get_config()
  values.update_from_flattened_dict(dict(changes))
  config, _ = parse(values)
  dataset = data.make(config.model.context_length)
  model = dataclasses.replace(config.model, vocab_size=dataset.tokenizer.vocab_size)
  return dataclasses.replace(config, data=data, model=model), dataset


def train(
  data: Any,
  changes: Mapping[str, Any],
  seeds: Sequence[int] = SEEDS,
  watch: Callable[[GPT2, Any], Any] | None = None,
  make: Callable[[GPT2Config], GPT2] = GPT2,
) -> list[Trained]:
  """The same experiment from several seeds: of the weights and the order of data.

  A sweep over train.seed, whose folder is not kept.

  Args:
    data, changes: see `experiment`; train.seed is one of `seeds` in turn.
    watch: (model, params) -> whatever is to be followed while the model learns.
    make: makes the model of its config.
  """
  rarely = {} if watch else {"eval.every_steps": NEVER}
  config, dataset = experiment(data, {**changes, **QUIET, **rarely})
  members = [
    Member(
      {"train.seed": seed},
      dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed)),
      dataset,
    )
    for seed in seeds
  ]
  history: dict[str, list] = {member.name: [] for member in members}
  last: dict[str, tuple[GPT2, Any]] = {}

  def on_eval(member: Member, step: int, model: GPT2, params: Any) -> dict:
    if watch is not None:
      history[member.name].append((step, watch(model, params)))
    if step == config.train.num_steps:
      last[member.name] = model, jax.tree.map(jnp.copy, params)
    return {}

  with tempfile.TemporaryDirectory() as folder:
    rows, stopped_by = run_sweep(
      members, folder, model=make, on_eval=on_eval, tell=lambda line: None
    )
  if stopped_by:
    sys.exit(128 + stopped_by)
  return [
    Trained(*last[name], row["val/loss"], row["val/floor"], history[name])
    for row in rows
    for name in [row["member"]]
  ]


def init_params(model: GPT2, seed: int = 0) -> Any:
  """Fresh parameters, without the axis names."""
  token = jnp.zeros((1, 1), int)
  return nn.meta.unbox(jax.jit(model.init)(jax.random.key(seed), token))


def losses_by_position(probabilities_BTV: Any, targets_BT: np.ndarray) -> np.ndarray:
  """Mean of -ln P(target) over the rows, in nats: [T], nan where no target counts."""
  counts_BT = targets_BT >= 0
  picked_BT = np.take_along_axis(
    np.asarray(probabilities_BTV), np.maximum(targets_BT, 0)[..., None], axis=-1
  )[..., 0]
  sums_T = -np.log(picked_BT, where=counts_BT, out=np.zeros(counts_BT.shape)).sum(0)
  counts_T = counts_BT.sum(0)
  missing_T = np.full(counts_T.shape, np.nan)
  return np.divide(sums_T, counts_T, out=missing_T, where=counts_T > 0)
