"""Validation: the exact loss beside the floor, and what the model writes."""

from collections.abc import Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
from jax.sharding import NamedSharding
import numpy as np
import tqdm

from gpt2_flax import generation
from gpt2_flax.datasets import Dataset, floor
from gpt2_flax.datasets.dataset import as_batch
from gpt2_flax.datasets.pipeline import validation_batches, validation_windows
from gpt2_flax.errors import InputError
from gpt2_flax.layers.layer_stacking import unstack_layers
from gpt2_flax.training.config import ExperimentConfig
from gpt2_flax.training.loss import Loss, summed_loss
from gpt2_flax.training.mesh import held_rows, put_batch
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
    loss: Loss = summed_loss,
  ):
    self._dataset, self._config, self._sharding = dataset, config, sharding
    self._steps = {"val/loss": make_eval_step(model)}
    if loss is not summed_loss:
      self._steps["val/objective"] = make_eval_step(model, loss)
    # generation needs its layers apart
    self._plain_model = model.clone(config=model.config.plain)
    self._batch_size = config.train.batch_size
    self._rows = held_rows(sharding, self._batch_size)
    self._windows = validation_windows(
      dataset, config.eval.num_windows, self._batch_size, self._rows
    )
    self._first_token = dataset.window("validation", 0)[:1]

  @functools.cached_property
  def floor(self) -> float | None:
    if self._dataset.next_token_probabilities(self._first_token) is None:
      return None
    windows = self._windows
    if len(self._rows) < self._batch_size:  # other processes have the other rows
      windows = validation_windows(self._dataset, self._config.eval.num_windows)
    return floor(self._dataset, windows[windows[:, 0] >= 0])

  def losses(self, params: Any) -> dict[str, float]:
    """The validation losses.

    "val/loss" is the cross-entropy in nats a token; "val/floor" and "val/gap" are there
    where there is an oracle, and "val/objective", the mean of the loss that is trained
    on, where that is another.
    """
    sums = {name: [] for name in self._steps}
    for rows in validation_batches(self._dataset, self._windows, len(self._rows)):
      batch = put_batch(rows, self._sharding, self._batch_size)
      for name, step in self._steps.items():
        sums[name].append(step(params, batch))
    metrics = {}
    for name, parts in sums.items():
      # float64 on the host: the sum over a whole split would lose digits in float32
      total, count = np.sum(np.array(jax.device_get(parts), np.float64), axis=0)
      metrics[name] = float(total / count)
    if self.floor is not None:
      metrics["val/floor"] = self.floor
      metrics["val/gap"] = metrics["val/loss"] - self.floor
    return metrics

  def samples(self, params: Any, num_samples: int, seed: int) -> np.ndarray:
    """Token ids, int [num_samples, 1 + eval.sample_tokens], the start token first."""
    start_id = self._dataset.tokenizer.start_id
    prompt = [start_id if start_id is not None else int(self._first_token[0])]
    with (
      jax.transfer_guard("allow"),  # prompt and text move between host and device
      nn.logical_axis_rules(()),  # there may be fewer rows than devices
    ):
      rows = generation.generate(
        self._plain_model,
        unstack_layers(params),
        [prompt] * num_samples,
        num_tokens=self._config.eval.sample_tokens,
        key=jax.random.key(seed),
        overflow="slide",
      )
    return np.array([prompt + row for row in rows])

  def sample(self, params: Any, seed: int) -> str | None:
    """A text that the model writes; None where eval.sample_tokens is 0."""
    if self._config.eval.sample_tokens == 0:
      return None
    return self._dataset.tokenizer.decode(self.samples(params, 1, seed)[0].tolist())

  def possible_share(self, params: Any, num_samples: int, seed: int) -> float | None:
    """The share of samples in which the oracle allows every token.

    For the grammar: the share of grammatical texts. None without an oracle.
    """
    if self._config.eval.sample_tokens == 0 or self.floor is None:
      return None
    samples = self.samples(params, num_samples, seed)
    possible = []
    for tokens in samples:
      probabilities = self._dataset.next_token_probabilities(tokens[:-1])
      assert probabilities is not None  # as there is a floor
      of_samples = probabilities[np.arange(len(tokens) - 1), tokens[1:]]
      possible.append(bool((of_samples > 0).all()))
    return float(np.mean(possible))


def text_loss(
  model: GPT2, params: Any, tokens: Sequence[int], *, stride: int, batch_size: int
) -> tuple[float, int]:
  """The loss of a whole text under a sliding window.

  Args:
    tokens: of the text; all but the first are predicted, each once.
    stride: how far the window moves; each token but the first ones is predicted from
      context_length - stride tokens at least. 0 means half the context.
    batch_size: windows at once; it does not change the result.

  Returns:
    The sum in nats, and the number of tokens it is over.
  """
  length = model.config.context_length
  stride = stride or (length + 1) // 2
  if not 1 <= stride <= length:
    raise InputError(
      f"stride is {stride}: must be 1 to model.context_length, which is {length}"
    )
  if batch_size < 1:
    raise InputError(f"batch_size is {batch_size}: must be at least 1")
  if len(tokens) < 2:
    raise InputError(f"the text has {len(tokens)} token(s): must have at least 2")
  ids = np.asarray(tokens, np.int32)
  starts = range(0, max(1, len(ids) - 1 - length + stride), stride)
  eval_step = make_eval_step(model)
  total, count = 0.0, 0
  for first in tqdm.tqdm(range(0, len(starts), batch_size), disable=None):
    windows = np.full((batch_size, length + 1), -1, np.int32)
    scored = np.zeros((batch_size, length), bool)
    for row, start in enumerate(starts[first : first + batch_size]):
      window = ids[start : start + length + 1]
      windows[row, : len(window)] = window
      scored[row, 0 if start == 0 else length - stride :] = True
    batch = as_batch(windows)
    batch["targets"] = np.where(scored, batch["targets"], -1)
    batch_total, batch_count = jax.device_get(eval_step(params, batch))
    total, count = total + float(batch_total), count + int(batch_count)
  return total, count
