"""What stands in for a training in the tests of lessons: figures that are given."""

from collections.abc import Callable, Sequence
import dataclasses
import io
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax import GPT2, GPT2Config
from gpt2_flax.training.config import ExperimentConfig
from lessons.report import Finding, new_figure, Report
from lessons.training import experiment, SEEDS, Trained


@dataclasses.dataclass(frozen=True)
class Given:
  """What one training shall come to.

  Attributes:
    params: what the model is to have learned, if anyone looks.
    at_step: step -> the params that are watched then; the same ones, unless given.
  """

  loss: float
  floor: float = 0.0
  params: Any = None
  at_step: Callable[[int], Any] | None = None


def train_giving(
  outcome: Callable[[ExperimentConfig, int], Given], model: Callable = GPT2
) -> Callable:
  """A `train` that trains nothing.

  The changes become a config as in the real one, so they must be those of one.

  Args:
    outcome: (config, seed) -> what is given.
    model: made of config.model, unless the lesson says what to make.
  """

  def train(data, changes, seeds=SEEDS, watch=None, make=model):
    config, _ = experiment(data, changes)
    every, last = config.eval.every_steps, config.train.num_steps
    trained = []
    for seed in seeds:
      given = outcome(config, seed)
      made = make(config.model)
      at_step = given.at_step or (lambda step, given=given: given.params)
      steps = [*range(every, last, every), last] if watch else []
      history = [(step, watch(made, at_step(step))) for step in steps]
      trained.append(Trained(made, given.params, given.loss, given.floor, history))
    return trained

  return train


@dataclasses.dataclass(frozen=True)
class ByHeart:
  """In place of a GPT2: it knows some texts, and on others it has no idea.

  Its parameters are {"texts": int [B, T], "logits": [B, T, V]}.
  """

  config: GPT2Config

  def apply(self, params: Any, tokens_BT: jax.Array) -> jax.Array:
    length = tokens_BT.shape[1]
    assert length <= self.config.context_length
    known_BT = params["texts"][:, :length] == tokens_BT
    return jnp.where(known_BT[..., None], params["logits"][:, :length], 0.0)


def with_gap(
  oracle_BTV: np.ndarray, targets_BT: np.ndarray, gap_T: np.ndarray
) -> np.ndarray:
  """Probabilities of the targets that cost gap_T nats more than the language's own.

  What is taken from them goes to the start token, which is never a target.
  """
  at = targets_BT[..., None]
  assert (at > 0).all()
  left = np.take_along_axis(oracle_BTV, at, -1) * np.exp(-gap_T)[:, None]
  given = np.zeros_like(oracle_BTV)
  np.put_along_axis(given, at, left, -1)
  given[..., 0] = 1 - left[..., 0]
  return given


def held(report: Report) -> list[bool]:
  """Which findings hold."""
  return [finding.holds for finding in report.findings]


def all_but(num: int, spoilt: int) -> list[bool]:
  """What `held` is where one finding alone does not hold."""
  return [i != spoilt for i in range(num)]


def table(report: Report, begins: str) -> Sequence:
  """The rows of the table whose title begins so."""
  [rows] = [rows for title, rows in report.tables.items() if title.startswith(begins)]
  return rows


def figures(wanted: bool) -> Callable:
  """`new_figure`; or, where the verdict is asked for alone, one that draws nothing."""

  def nothing(num_panels=1, num_rows=1):
    return mock.MagicMock(), [mock.MagicMock() for _ in range(num_panels)]

  return new_figure if wanted else nothing


def picture_size(report: Report) -> int:
  """Bytes of the picture: it can be drawn without a warning."""
  picture = io.BytesIO()
  report.figure.savefig(picture, format="png")
  return picture.tell()


def small_report(*holds: bool) -> Report:
  """One finding for each of these, and a small table."""
  findings = [Finding(f"figure {i}", held) for i, held in enumerate(holds)]
  rows = [
    {"layers": 1, "loss": 1.25, "error": 3e-7},
    {"layers": 12, "loss": 0.5, "error": 0.0},
  ]
  return Report({"Title": rows}, findings, new_figure()[0])
