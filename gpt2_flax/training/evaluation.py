"""Validation: the exact loss beside the floor, and what the model writes."""

import functools
from typing import Any, NamedTuple

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
    """Token ids, int [num_samples, N + eval.sample_tokens], of texts that begin with
    the N of `Dataset.opening`."""
    prompt = self._dataset.opening()
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


class TextLoss(NamedTuple):
  """How well a text is predicted.

  Attributes:
    mean: nats a token, as the recipe of `text_loss` takes the mean.
    total: nats, summed over the tokens that are predicted, each once.
    count: how many these are.
  """

  mean: float
  total: float
  count: int


def text_loss(
  model: GPT2, params: Any, tokens: np.ndarray, *, stride: int, batch_size: int
) -> TextLoss:
  """The loss of a whole text under a sliding window.

  It is the recipe of "Perplexity of fixed-length models" (Hugging Face's documentation
  of transformers), so that exp(mean) compares with perplexities that are published. A
  window of context_length tokens moves by `stride`. Each predicts those of its tokens
  that no window before it had, from the tokens before them in the window. So a token
  has context_length - stride tokens before it at least; with stride = context_length a
  window's first token has none, and is not predicted.

  In the mean, a window that had n tokens to predict counts n - 1 times, and the first
  one as often as it predicts, which is one less than it has. That is the recipe's; in a
  long text it makes no difference that is printed.

  Args:
    tokens: int [N], of the text.
    stride: how far the window moves; 0 means half the context.
    batch_size: windows at once; it does not change the result.
  """
  length = model.config.context_length
  stride = stride or max(2, (length + 1) // 2)
  if not 2 <= stride <= length:
    raise InputError(
      f"stride is {stride}: must be 2 to model.context_length, which is {length}"
    )
  if batch_size < 1:
    raise InputError(f"batch_size is {batch_size}: must be at least 1")
  if len(tokens) < 2:
    raise InputError(f"the text has {len(tokens)} token(s): must have at least 2")
  starts = range(0, max(1, len(tokens) - length + stride), stride)
  eval_step = make_eval_step(model)
  weighted, weights, total, count = 0.0, 0, 0.0, 0
  with tqdm.tqdm(total=len(starts), disable=None) as bar:
    # the first window, those that are full, and the last
    for alike in filter(None, (starts[:1], starts[1:-1], starts[1:][-1:])):
      size = min(length, len(tokens) - alike[0])
      num_seen = 0 if alike[0] == 0 else length - stride  # by the window before it
      summed = 0.0
      for first in range(0, len(alike), batch_size):
        windows = np.full((batch_size, length + 1), -1, np.int32)
        for row, start in enumerate(alike[first : first + batch_size]):
          windows[row, :size] = tokens[start : start + size]
        batch = as_batch(windows)
        batch["targets"][:, : max(0, num_seen - 1)] = -1
        batch_total, batch_count = jax.device_get(eval_step(params, batch))
        summed, count = summed + float(batch_total), count + int(batch_count)
        bar.update(min(batch_size, len(alike) - first))
      weight = (size - num_seen - 1) * len(alike)
      weighted += weight * summed / len(alike) / max(1, min(size - num_seen, size - 1))
      weights, total = weights + weight, total + summed
  return TextLoss(weighted / weights, total, count)
