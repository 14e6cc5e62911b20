"""Validation: the exact loss beside the floor, and what the model writes."""

import functools
from typing import Any

import jax
from jax.sharding import NamedSharding
import numpy as np

from gpt2_flax import generation
from gpt2_flax.datasets import Dataset, floor
from gpt2_flax.datasets.pipeline import validation_batches, validation_windows
from gpt2_flax.training.config import ExperimentConfig
from gpt2_flax.training.step import make_eval_step
from gpt2_flax.transformer import GPT2


class Evaluator:
  """Scores parameters on the same validation windows each time.

  Attributes:
    floor: the loss that no model can beat on those windows, or None.
  """

  def __init__(
    self,
    model: GPT2,
    dataset: Dataset,
    config: ExperimentConfig,
    sharding: NamedSharding,
  ):
    self._model, self._dataset, self._config = model, dataset, config
    self._sharding = sharding
    self._eval_step = make_eval_step(model)
    self._windows = validation_windows(dataset, config.eval.num_windows)

  @functools.cached_property
  def floor(self) -> float | None:
    return floor(self._dataset, self._windows)

  def losses(self, params: Any) -> dict[str, float]:
    """val/loss in nats a token; val/floor and val/gap where there is an oracle."""
    sums = []
    for batch in validation_batches(self._windows, self._config.train.batch_size):
      batch = jax.device_put(batch, self._sharding)
      sums.append(self._eval_step(params, batch))
    # float64 on the host: the sum over a whole split would lose digits in float32
    total, count = np.sum(np.array(jax.device_get(sums), np.float64), axis=0)
    metrics = {"val/loss": float(total / count)}
    if self.floor is not None:
      metrics["val/floor"] = self.floor
      metrics["val/gap"] = metrics["val/loss"] - self.floor
    return metrics

  def samples(self, params: Any, num_samples: int, seed: int) -> np.ndarray:
    """Token ids, int [num_samples, 1 + eval.sample_tokens], the start token first."""
    start_id = self._dataset.tokenizer.start_id
    prompt = [start_id if start_id is not None else int(self._windows[0, 0])]
    num_tokens = self._config.eval.sample_tokens
    with jax.transfer_guard("allow"):  # a prompt and its text do cross over
      tokens = generation.generate(
        self._model,
        params,
        [prompt] * num_samples,
        num_tokens=num_tokens,
        key=jax.random.key(seed),
      )
    return np.insert(tokens, 0, prompt[0], axis=1)

  def sample(self, params: Any, seed: int) -> str | None:
    """A text that the model writes; None where eval.sample_tokens is 0."""
    if self._config.eval.sample_tokens == 0:
      return None
    return self._dataset.tokenizer.decode(self.samples(params, 1, seed)[0].tolist())

  def possible_share(self, params: Any, num_samples: int, seed: int) -> float | None:
    """The share of samples that the oracle holds possible, token by token.

    For the grammar: the share of grammatical texts. None without an oracle.
    """
    if self._config.eval.sample_tokens == 0 or self.floor is None:
      return None
    samples = self.samples(params, num_samples, seed)
    possible = []
    for tokens in samples:
      probabilities = self._dataset.next_token_probabilities(tokens[:-1])
      of_samples = probabilities[np.arange(len(tokens) - 1), tokens[1:]]
      possible.append(bool((of_samples > 0).all()))
    return float(np.mean(possible))
