# %% [markdown]
# # Relations: why many heads?
#
# A head asks one question. Its weights on the tokens before sum to 1, by a softmax, so
# what it spends on one token it cannot spend on another, and what it brings home is one
# mixture: the average of all it looked at, without a note of what came from where.
# Whoever needs two things from two places, and must not mix them up, needs two heads.
# Or so it is said. Let us build the smallest case.
#
# The model reads random symbols. At each, a coin is tossed. Heads: the label is f(the
# symbol before). Tails: it is g(the symbol before that). f and g are two fixed,
# different shuffles of the alphabet. Nobody can know how the coin fell, so the best
# prediction has two peaks of one half, and costs about ln 2 = 0.69 nats, which is the
# floor: no model can lose less. (It is a little less, as now and then both peaks are
# the same symbol.)
#
# **What do you expect?** Give one head as many parameters as two have together. Does it
# get as far as two? And what if f and g are the same shuffle?

# %%
"""Why many heads: one softmax can look one way only."""

import dataclasses
from typing import ClassVar

import jax
from matplotlib.figure import Figure
import numpy as np

from gpt2_flax.datasets.pipeline import validation_windows
from gpt2_flax.interpret import trace
from gpt2_flax.transformer import num_params
from lessons.labels import Labels
from lessons.report import COLOURS, Finding, new_figure, Report, show
from lessons.training import SEEDS, train, Trained

CLAIM = "Two relations that say different things take two heads"
SECONDS = 65

LENGTH = 16
CHANGES = {
  "model.context_length": LENGTH,
  "model.num_layers": 1,
  "model.embed_dim": 32,
  "model.feed_forward": False,
}


@dataclasses.dataclass(frozen=True)
class EitherConfig:
  """See `Either`; `same` has f and g be one shuffle."""

  name: ClassVar = "either"
  num_symbols: int = 16
  same: bool = False
  seed: int = 0

  def make(self, context_length: int) -> "Either":
    return Either(self, context_length)


class Either(Labels):
  """The label is f(the symbol before) or g(the one before that), with equal chances.

  The first two symbols, which lack one of these, have no label.

  Attributes:
    f, g: int [V], token -> label; the start token's is never asked for.
  """

  def __init__(self, config: EitherConfig, context_length: int):
    super().__init__(config.num_symbols, context_length, config.seed)
    rng = np.random.default_rng((config.seed, len("either")))
    f, g = (np.append(0, 1 + rng.permutation(config.num_symbols)) for _ in range(2))
    self.f, self.g = f, f if config.same else g

  def labels(self, rng: np.random.Generator, tokens: np.ndarray) -> np.ndarray:
    labels = np.full(len(tokens), -1)
    coin = rng.random(len(tokens) - 3) < 0.5
    labels[3:] = np.where(coin, self.f[tokens[2:-1]], self.g[tokens[1:-2]])
    return labels

  def next_token_probabilities(self, tokens: np.ndarray) -> np.ndarray:
    rows = np.zeros((len(tokens), self.tokenizer.vocab_size))
    i = np.arange(3, len(tokens))
    np.add.at(rows, (i, self.f[tokens[i - 1]]), 0.5)
    np.add.at(rows, (i, self.g[tokens[i - 2]]), 0.5)
    return rows


# %% [markdown]
# Three models, each of one layer of attention and nothing else. All have the same
# number of parameters: two heads are half as wide as one. The third is the control. It
# has one head, and f = g: still two places to look at, but the symbols found there mean
# the same wherever they come from.

# %%
MODELS = {
  "one head": (EitherConfig(), 1),
  "two heads": (EitherConfig(), 2),
  "one head, f = g": (EitherConfig(same=True), 1),
}


def attention(trained: Trained, data: EitherConfig) -> np.ndarray:
  """Mean attention weights [H, T, S] over validation windows."""
  dataset = data.make(LENGTH)
  inputs = dataset.batch(validation_windows(dataset, 128))["inputs"]
  _, run = jax.jit(
    lambda params: trace(trained.model, params, inputs, (), ["weights"])
  )(trained.params)
  return np.asarray(run.weights[0].mean(1))


def looks_back(weights_TS: np.ndarray, offset: int) -> float:
  """The mean weight on the token `offset` before, over queries that have a label."""
  return float(np.mean([weights_TS[i, i - offset] for i in range(3, LENGTH)]))


# %% [markdown]
# With two heads, which of them takes which relation is chance. That each takes one is
# not.


# %%
def run(reduced: bool = False) -> Report:
  """Trains the three models, and looks where their heads look."""
  seeds, num_steps = (SEEDS[:1], 500) if reduced else (SEEDS, 1000)
  changes = {**CHANGES, "train.num_steps": num_steps}
  trained = {
    name: train(data, changes | {"model.num_heads": num_heads}, seeds)
    for name, (data, num_heads) in MODELS.items()
  }
  weights = {
    name: [attention(one, data) for one in trained[name]]
    for name, (data, _) in MODELS.items()
  }
  rows = [
    {
      "model": name,
      "seed": seed,
      "parameters": num_params(one.params),
      "loss": one.loss,
      "floor": one.floor,
      "1 back": ", ".join(f"{looks_back(head, 1):.2f}" for head in heads),
      "2 back": ", ".join(f"{looks_back(head, 2):.2f}" for head in heads),
    }
    for name in MODELS
    for seed, one, heads in zip(seeds, trained[name], weights[name], strict=True)
  ]

  losses = {name: [one.loss for one in trained[name]] for name in MODELS}
  gaps = {name: [one.gap for one in trained[name]] for name in MODELS}
  shared = []
  for one, other in weights["two heads"]:
    one_first = min(looks_back(one, 1), looks_back(other, 2))
    other_first = min(looks_back(other, 1), looks_back(one, 2))
    shared.append(max(one_first, other_first))
  two, single = max(gaps["two heads"]), min(gaps["one head"])
  control = max(gaps["one head, f = g"])
  findings = [
    Finding(
      f"two heads reach {max(losses['two heads']):.2f} nats, {two:.2f} above the floor;"
      f" one head of the same size in all stays at {min(losses['one head']):.2f} to"
      f" {max(losses['one head']):.2f}",
      two < 0.1 and single > 0.4,
    ),
    Finding(
      "one of the two looks one back, the other two back, each with at least"
      f" {min(shared):.2f} of its weight",
      min(shared) > 0.9,
    ),
    Finding(
      "it is not the second place that takes a second head, but the second meaning:"
      f" where f = g, one head comes within {control:.2f} of the floor",
      control < 0.15,
    ),
  ]
  table = "After training, nats a label; weight on the symbol one and two back, by head"
  return Report({table: rows}, findings, draw(weights, losses, rows[0]["floor"]))


# %%
def draw(
  weights: dict[str, list[np.ndarray]], losses: dict[str, list[float]], floor: float
) -> Figure:
  """The losses, and the attention maps of the first seed."""
  figure, (left, *maps) = new_figure(4)
  for i, (name, colour) in enumerate(zip(losses, COLOURS, strict=False)):
    left.bar(i, np.mean(losses[name]), color=colour, alpha=0.6)
    left.plot([i] * len(losses[name]), losses[name], "o", color="black", markersize=3)
  left.axhline(floor, color="black", linestyle=":", linewidth=1)
  left.annotate("floor", (-0.38, floor), va="bottom")
  left.set(ylabel="loss (nats a label)", title="One look is not enough")
  left.set_xticks(range(len(losses)), [name.replace(", ", "\n") for name in losses])

  (only,), (first, second) = weights["one head"][0], weights["two heads"][0]
  titles = ("The one head", "Two heads: the one", "and the other")
  for panel, title, head in zip(maps, titles, (only, first, second), strict=True):
    image = panel.imshow(head, cmap="Blues", vmin=0, vmax=1)
    panel.set(xlabel="looks at position", title=title)
    panel.spines[["left", "bottom"]].set_visible(False)
  maps[0].set_ylabel("from position")
  figure.colorbar(image, ax=maps, label="attention weight", shrink=0.8)
  return figure


# %%
if __name__ == "__main__":
  show(run)

# %% [markdown]
# ## The verdict
#
# The one head does what it can: nearly half of its weight here, nearly half there. But
# then the two symbols arrive as a sum, which does not say which of them came first. f
# and g of both remain: four candidates in place of two, and ln 4 = 1.39 nats if they
# were equally likely. It ends a little below; in a trial of ours, set up differently,
# one head came to 1.22. Nowhere is it near two heads.
#
# In the control the same even look is all that is needed. So the honest claim is
# narrower than "several relations need several heads". A head may look at many places.
# It cannot treat what it finds there in different ways.

# %% [markdown]
# ## Exercise
#
# Perhaps the one head is just too small. In `CHANGES`, double the width of the model:
# `"model.embed_dim": 64`, which makes its one head twice as wide, and the model almost
# four times as large. Does the one head come nearer to the floor?

# %% [markdown]
# ## Answer
#
# No. The models have 17984 parameters in place of 4896, and the one head stays at 1.373
# to 1.379 nats, where it was 1.374 to 1.377. Its weights are the same, 0.44 and 0.44.
# What it lacks is not room but a second softmax: of a sum of two symbols, no width
# tells which came first.
