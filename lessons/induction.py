# %% [markdown]
# # Induction: two layers learn to learn
#
# Some tokens matter because of where they stand in a sentence, others because of what
# this very text has done before. Read aloud:
#
#     r a k f r a k f r a ...
#
# You know what comes next, and not because you know the language: there is none. The
# symbols are random, and each sequence repeats with a period of its own. You looked for
# the last `a`, and said what followed it. Can attention do that?
#
# Not one layer of it, so the story goes. A head that reads `a` can find the earlier
# `a`; but what it finds there says `a`, not what came after. The `k` behind it says
# `k`, and would have to be found by someone who does not know yet that it is a `k`. Two
# layers can share the work. In the first, a *previous-token head* has each token note
# who came before: the `k` now carries "after an `a`". In the second, an *induction
# head* searches for that note, and says the token that carries it (Olsson et al., 2022,
# "In-context Learning and Induction Heads"). We train both, on attention alone, with no
# feed-forward in between.
#
# **What do you expect?** Does the loss of two layers fall steadily, or all at once?
# Which of the two kinds of head is there first? And when one of two induction heads is
# taken away, is the model lost?

# %%
"""Two layers learn to learn: an induction head, caught as it forms."""

from collections.abc import Sequence
import functools
from typing import Any

import jax
from matplotlib.figure import Figure
import numpy as np

from gpt2_flax.datasets.dataset import Batch
from gpt2_flax.datasets.induction import InductionConfig
from gpt2_flax.datasets.pipeline import validation_windows
from gpt2_flax.interpret import (
  ablate_heads,
  edited,
  induction_score,
  previous_token_score,
  trace,
)
from gpt2_flax.training.loss import summed_loss
from gpt2_flax.transformer import GPT2
from lessons.report import COLOURS, Finding, new_figure, Report, show
from lessons.training import SEEDS, train, Trained

CLAIM = "Two layers of attention learn to continue what they have seen once; one cannot"
SECONDS = 63

DATA = InductionConfig(num_symbols=32, min_period=4, max_period=16)
LENGTH = 32
CHANGES = {
  "model.context_length": LENGTH,
  "model.num_heads": 2,
  "model.feed_forward": False,
  "eval.every_steps": 50,
}

# %% [markdown]
# While the model learns we watch its loss and where its heads look. The *induction
# score* is the weight that a token gives to what followed its own kind before; the
# *previous-token score* is the weight on the token before. Of each layer's heads we
# take the one that scores highest.


# %%
@functools.partial(jax.jit, static_argnums=0)
def head_scores(model: GPT2, params: Any, batch: Batch) -> dict[str, jax.Array]:
  """Each [L, H]."""
  _, run = trace(model, params, batch["inputs"], taps=["weights"])
  return {
    "previous": previous_token_score(run.weights),
    "induction": induction_score(run.weights, batch["inputs"]),
  }


@functools.partial(jax.jit, static_argnums=0)
def loss_without(
  model: GPT2, params: Any, batch: Batch, heads_LH: jax.Array
) -> jax.Array:
  """The loss in nats a token where these heads say nothing."""
  total, count = summed_loss(*edited(model, params, [ablate_heads(heads_LH)]), batch)
  return total / count


# %% [markdown]
# When it has learned, we take heads away, one or several at a time: an ablation. If the
# story is right, the second layer is lost without the notes of the first, while two
# induction heads that do the same can stand in for each other.


# %%
def surgery(trained: Trained, batch: Batch) -> dict[str, float]:
  """The loss by what is taken away; of single induction heads, the worse one."""
  model, params = trained.model, trained.params
  previous = int(np.argmax(head_scores(model, params, batch)["previous"][0]))
  other = 1 - previous

  def loss(*heads: tuple[int, int]) -> float:
    mask_LH = np.zeros((2, 2), bool)
    for head in heads:
      mask_LH[head] = True
    return float(loss_without(model, params, batch, mask_LH))

  return {
    "nothing": loss(),
    "previous-token head": loss((0, previous)),
    "first layer's other": loss((0, other)),
    "one induction head": max(loss((1, 0)), loss((1, 1))),
    "both induction heads": loss((1, 0), (1, 1)),
  }


def halfway(steps: Sequence[int], values: Sequence[float], middle: float) -> float:
  """The step at which a curve first crosses `middle`, between the steps recorded."""
  side = np.asarray(values) > middle
  i = int(np.argmax(side != side[0]))
  share = (middle - values[i - 1]) / (values[i] - values[i - 1])
  return steps[i - 1] + share * (steps[i] - steps[i - 1])


# %% [markdown]
# Several seeds, because which head takes which part is chance, and when they find each
# other is too. The floor is the loss of the best possible prediction: even who knows
# all about the process has to guess until a sequence repeats.


# %%
def run(reduced: bool = False) -> Report:
  """Trains one layer and two, follows the scores, and takes heads away."""
  seeds = SEEDS[:1] if reduced else SEEDS
  steps = {1: 100, 2: 700} if reduced else {1: 1000, 2: 1000}
  dataset = DATA.make(LENGTH)
  batch = dataset.batch(validation_windows(dataset, 128))

  def watch(model: GPT2, params: Any) -> dict[str, float]:
    scores = head_scores(model, params, batch)
    no_head = np.zeros((model.config.num_layers, model.config.num_heads), bool)
    return {
      "loss": float(loss_without(model, params, batch, no_head)),
      "previous": float(scores["previous"][0].max()),
      "induction": float(scores["induction"][-1].max()),
    }

  layers = {}
  for n in (1, 2):
    changes = {**CHANGES, "model.num_layers": n, "train.num_steps": steps[n]}
    layers[n] = train(DATA, changes, seeds, watch)
  losses = [surgery(trained, batch) for trained in layers[2]]

  trainings = [
    {
      "layers": n,
      "seed": seed,
      "loss": trained.loss,
      "above the floor": trained.gap,
      "previous-token score": trained.history[-1][1]["previous"],
      "induction score": trained.history[-1][1]["induction"],
    }
    for n, runs in layers.items()
    for seed, trained in zip(seeds, runs, strict=True)
  ]
  plateau = max(trained.loss for trained in layers[1])
  apart = []
  for trained in layers[2]:
    at, curves = zip(*trained.history, strict=True)
    loss = [curve["loss"] for curve in curves]
    score = [curve["induction"] for curve in curves]
    falls = halfway(at, loss, (min(loss) + plateau) / 2)
    apart.append(abs(falls - halfway(at, score, max(score) / 2)))

  gap = max(trained.gap for trained in layers[2])
  lonely = min(trained.gap for trained in layers[1])
  worst = max(loss["one induction head"] - loss["nothing"] for loss in losses)
  broken = min(loss["previous-token head"] for loss in losses)
  both = min(loss["both induction heads"] for loss in losses)
  findings = [
    Finding(
      f"two layers come within {gap:.3f} nats of the floor, {layers[2][0].floor:.2f};"
      f" one stays {lonely:.2f} above it, at {plateau:.2f}",
      gap < lonely / 10,
    ),
    Finding(
      "the loss falls as the induction score rises: each is halfway within"
      f" {max(apart):.0f} steps of the other",
      max(apart) <= 100,
    ),
    Finding(
      f"without its previous-token head the loss is at least {broken:.2f}",
      broken > layers[2][0].floor + 1,
    ),
    Finding(
      f"without one of its two induction heads it is at most {worst:.2f} nats higher;"
      f" without both it is at least {both:.2f}",
      worst < (both - layers[2][0].floor) / 10,
    ),
  ]
  rows = [{"seed": seed, **loss} for seed, loss in zip(seeds, losses, strict=True)]
  return Report(
    {"After training, nats a token": trainings, "The loss without ...": rows},
    findings,
    draw(layers, losses),
  )


# %%
def draw(layers: dict[int, list[Trained]], losses: list[dict[str, float]]) -> Figure:
  """Loss by step, scores by step, and what is lost with each head."""
  figure, (left, middle, right) = new_figure(3)
  for n, colour in ((1, COLOURS[4]), (2, COLOURS[0])):
    for i, trained in enumerate(layers[n]):
      at, curves = zip(*trained.history, strict=True)
      label = ("one layer", "two layers")[n - 1] if i == 0 else None
      loss = [curve["loss"] for curve in curves]
      left.plot(at, loss, color=colour, label=label, alpha=0.8)
      for name, shade in (("previous", COLOURS[2]), ("induction", COLOURS[3])):
        if n == 2:
          label = f"{name}{'-token' * (name == 'previous')}" if i == 0 else None
          score = [curve[name] for curve in curves]
          middle.plot(at, score, color=shade, label=label, alpha=0.8)
  floor = layers[2][0].floor
  left.axhline(floor, color="black", linestyle=":", linewidth=1, label="floor")
  left.set(xlabel="step", ylabel="loss (nats a token)", title="Suddenly, it knows")
  left.legend(frameon=False)
  middle.set(
    xlabel="step",
    ylabel="score of the best head",
    title="First the search, then tidy notes",
    ylim=(0, 1),
  )
  middle.legend(frameon=False, loc="lower right")

  shades = (COLOURS[6], COLOURS[2], COLOURS[5], COLOURS[3], COLOURS[3])
  places = np.arange(len(shades))[::-1]
  means = [np.mean([loss[what] for loss in losses]) for what in losses[0]]
  right.barh(places, means, color=shades, alpha=0.45)
  for loss in losses:
    right.plot(list(loss.values()), places, "o", color="black", markersize=3)
  right.axvline(floor, color="black", linestyle=":", linewidth=1)
  right.set(
    yticks=places,
    yticklabels=list(losses[0]),
    xlabel="loss (nats a token)",
    title="What the loss is without ...",
  )
  return figure


# %%
if __name__ == "__main__":
  show(run)

# %% [markdown]
# ## The verdict
#
# One layer levels off where counting symbols takes it. Two layers walk beside it for a
# while, as if depth were no use; then the loss falls off a cliff. Look at what comes
# first. The search is there while the notes are still a smudge, "an `a` was somewhere
# near"; with random symbols that is often hint enough. Then the first layer, which now
# is asked for something, gets its notes tidy.
#
# A trial of ours with other periods had one layer near 1.9 nats. That number goes with
# the periods; the distance from two layers remains. What the trial did not have: the
# first layer's other head is missed too, if less. The story of the two kinds of head is
# true, and not yet the whole circuit.

# %% [markdown]
# ## Exercise
#
# Each sequence has a period of its own, 4 to 16. What if all had the same? In `DATA`,
# set `min_period=8, max_period=8`. Does one layer still fail? Then look at the
# induction score of two layers: do they still search?

# %% [markdown]
# ## Answer
#
# No: within 0.0008 nats of its floor of 0.87, like two layers. Where the period is
# always 8, what comes next stands 7 places back, and a head can find that by position
# alone. (The floor is not 0, because the first eight symbols can only be guessed.)
#
# And a warning: the induction score is 0.96 in every one of these models, of one layer
# too. The score says where a head looks, not how it knows where. The previous-token
# score of one layer is 0.03, so that nobody takes notes. What made the search worth
# learning was that the distance changed from text to text. The findings of this lesson
# rightly say that their claims do not hold here.
