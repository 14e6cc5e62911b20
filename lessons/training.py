"""Small models, trained quietly: `gpt2_flax.training`'s steps, without a workdir."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from configs import toy
from gpt2_flax.datasets import Dataset
from gpt2_flax.datasets.pipeline import train_batches
from gpt2_flax.training.config import ExperimentConfig
from gpt2_flax.training.evaluation import Evaluator
from gpt2_flax.training.experiment import parse
from gpt2_flax.training.mesh import batch_sharding, one_device_mesh
from gpt2_flax.training.optimizer import learning_rate_schedule, make_optimizer
from gpt2_flax.training.step import abstract_state, init_state, make_train_step
from gpt2_flax.transformer import GPT2

SEEDS = (0, 1, 2)


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
  make: Callable[..., GPT2] = GPT2,
) -> list[Trained]:
  """The same experiment from several seeds: of the weights and the order of data.

  Args:
    data, changes: see `experiment`; train.seed is one of `seeds` in turn.
    watch: (model, params) -> whatever is to be followed while the model learns.
    make: makes the model of its config.
  """
  config, dataset = experiment(data, changes)
  mesh = one_device_mesh()
  sharding = batch_sharding(mesh)
  model = make(config.model)
  num_steps, batch_size = config.train.num_steps, config.train.batch_size
  schedule = learning_rate_schedule(config.optimizer, num_steps)
  optimizer = make_optimizer(config.optimizer, schedule)
  abstract = abstract_state(model, optimizer, mesh)
  train_step = make_train_step(model, optimizer, schedule, abstract)
  evaluator = Evaluator(model, dataset, config, sharding)

  trained = []
  for seed in seeds:
    state = init_state(model, optimizer, jax.random.key(seed), abstract)
    batches = train_batches(dataset, batch_size, seed)
    history = []
    for step in tqdm.trange(1, num_steps + 1, disable=None, leave=False):
      state, _ = train_step(state, jax.device_put(next(batches), sharding))
      if watch and (step % config.eval.every_steps == 0 or step == num_steps):
        history.append((step, watch(model, state.params)))
    losses = evaluator.losses(state.params)
    trained.append(
      Trained(model, state.params, losses["val/loss"], losses["val/floor"], history)
    )
  return trained


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
