# %% [markdown]
# # Tied embeddings: one table of words, or two?
#
# A model has a table with one row of numbers for each word: its embedding. There is a
# second place where a word must be known by its numbers: at the end, where the model's
# result is compared with every word, to say how likely each is as the next (the logits,
# from which a softmax makes probabilities). GPT-2 uses the same table at both places:
# its embeddings are tied. A model can also have two, one to read with and one to write
# with.
#
# The two jobs are not the same. Reading, "cat" must tell what a cat calls for: a verb
# in the singular. Writing, "cat" must be where the model points after "the big". One
# table has to do both.
#
# What would a good table look like? Words that are used alike should have embeddings
# that point the same way. In the toy language we know which are used alike. "boy",
# "king" and "farmer" can stand in for each other anywhere, so they are one class;
# "boys" and "kings" are in another. Nobody tells the model about classes: it sees
# numbers. We ask of each word: which other word's embedding points most nearly the same
# way (has the highest cosine with it)? Is that word of the same class?
#
# **What do you expect?** Which has the lower loss after equally many steps, one table
# or two? And in a model with two tables, which of them has the classes in it, the one
# that reads, or the one that writes?

# %%
"""Tied embeddings: one table to read and write with, or two; and what is in it."""

from collections.abc import Mapping, Sequence
import dataclasses

from matplotlib.figure import Figure
import numpy as np

from gpt2_flax import GPT2, GPT2Config
from gpt2_flax.datasets.english import (
  ADJECTIVES,
  INTRANSITIVE,
  NAMES,
  NOUNS,
  PREPOSITIONS,
  TRANSITIVE,
)
from gpt2_flax.datasets.grammar import GrammarConfig
from gpt2_flax.tokenizer import WordTokenizer
from gpt2_flax.transformer import num_params
from lessons.report import Finding, new_figure, Report, show
from lessons.training import SEEDS, train

CLAIM = "One table of embeddings does what two do, and learns which words are alike"
SECONDS = 30
CHANGES = {
  "model.context_length": 24,
  "model.embed_dim": 32,
  "optimizer.warmup_steps": 50,
  "eval.num_windows": 256,
}

# %% [markdown]
# ## Words that are used alike
#
# The grammar writes every word of a class with the same probability, wherever it writes
# one. So the words of a class are perfectly alike, and differ from all others.

# %%


def singular(verbs: Sequence[str]) -> tuple[str, ...]:
  """The forms for one who acts."""
  return tuple(f"{verb}s" for verb in verbs)


CLASSES: dict[str, tuple[str, ...]] = {
  "nouns, he": NOUNS["he"],
  "nouns, she": NOUNS["she"],
  "nouns, it": NOUNS["it"],
  "nouns, they": NOUNS["they"],
  "names, he": NAMES["he"],
  "names, she": NAMES["she"],
  "verbs alone, singular": singular(INTRANSITIVE),
  "verbs alone, plural": INTRANSITIVE,
  "verbs with object, singular": singular(TRANSITIVE),
  "verbs with object, plural": TRANSITIVE,
  "adjectives": ADJECTIVES,
  "prepositions": PREPOSITIONS,
}


def cosines(table_VD: np.ndarray) -> np.ndarray:
  """Of each pair of rows: 1 where they point the same way, 0 at right angles. [V, V]"""
  rows_VD = table_VD / np.linalg.norm(table_VD, axis=-1, keepdims=True)
  return rows_VD @ rows_VD.T


def class_table(words: WordTokenizer, table_VD: np.ndarray) -> np.ndarray:
  """The rows of the words that have a class, class by class."""
  ids = [i for of_class in CLASSES.values() for i in words.encode(" ".join(of_class))]
  return np.asarray(table_VD)[ids]


def labels() -> np.ndarray:
  """int [N]: the class of each row of `class_table`."""
  return np.repeat(np.arange(len(CLASSES)), [len(c) for c in CLASSES.values()])


# %% [markdown]
# ## The measure
#
# For each word the nearest other word; the measure is the share of words whose nearest
# is of their class. For a table of random numbers the nearest is any word, and the
# share is that of pairs that are of one class.
#
# Besides, the mean cosine of the words of one class with those of another. One pair of
# classes is of interest: "boy" and "girl". Both are written in the same places, after
# the same words. But read, they call for different words: he, or she.

# %%


def nearest_in_class(table_ND: np.ndarray) -> float:
  """The share of rows whose nearest other row has the same label."""
  cosines_NN = cosines(table_ND)
  np.fill_diagonal(cosines_NN, -np.inf)
  return float(np.mean(labels()[cosines_NN.argmax(-1)] == labels()))


def by_chance() -> float:
  """The same share, if the nearest were drawn from all other words."""
  alike_NN = labels()[:, None] == labels()[None]
  num = len(alike_NN)
  return float((alike_NN.sum() - num) / (num * (num - 1)))


def by_class(table_ND: np.ndarray) -> np.ndarray:
  """Mean cosine of two words, by their classes; a word is not paired with itself."""
  cosines_NN, num = cosines(table_ND), len(CLASSES)
  np.fill_diagonal(cosines_NN, np.nan)
  of = [labels() == label for label in range(num)]
  return np.array([[np.nanmean(cosines_NN[np.ix_(a, b)]) for b in of] for a in of])


# %% [markdown]
# ## One table and two
#
# Two models that differ in nothing else, from three seeds each, for equally many steps.
# The measure of a model's loss is its gap: how far it is above the floor, the loss of
# the best possible prediction, in nats.

# %%


def untied(config: GPT2Config) -> GPT2:
  """The same model with a second table, for its output."""
  return GPT2(dataclasses.replace(config, tied_embeddings=False))


KINDS = {"one table": GPT2, "two tables": untied}
TABLES = {
  "one table": {"reads and writes": "token_embedding"},
  "two tables": {"reads": "token_embedding", "writes": "output_embedding"},
}


def run(reduced: bool = False) -> Report:
  """Reduced: one seed."""
  data = GrammarConfig()
  changes = CHANGES | {"train.num_steps": 500}
  seeds = SEEDS[:1] if reduced else SEEDS
  trained = {kind: train(data, changes, seeds, make=KINDS[kind]) for kind in KINDS}
  words = data.make(CHANGES["model.context_length"]).tokenizer

  tables = {}  # (kind, job) -> a table for each seed
  for kind, jobs in TABLES.items():
    for job, name in jobs.items():
      tables[kind, job] = [
        class_table(words, model.params["params"][name]["embedding"])
        for model in trained[kind]
      ]
  shares = {key: list(map(nearest_in_class, of)) for key, of in tables.items()}
  maps = {key: np.mean(list(map(by_class, of)), 0) for key, of in tables.items()}
  he, she = (list(CLASSES).index(f"nouns, {who}") for who in ("he", "she"))
  apart = {key: float(map_CC[he, she]) for key, map_CC in maps.items()}
  gaps = {kind: [model.gap for model in models] for kind, models in trained.items()}

  losses = [
    {
      "model": kind,
      "parameters": num_params(models[0].params),
      "gap": float(np.mean(gaps[kind])),
      "lowest": min(gaps[kind]),
      "highest": max(gaps[kind]),
    }
    for kind, models in trained.items()
  ]
  alike = [
    {
      "model": kind,
      "the table that": job,
      "nearest is of the class": float(np.mean(shares[kind, job])),
      "lowest": min(shares[kind, job]),
      "cosine within a class": float(np.diag(map_CC).mean()),
      "of boy and girl": apart[kind, job],
    }
    for (kind, job), map_CC in maps.items()
  ]
  reads, writes = list(shares)[1:]
  one, two = (float(np.mean(gaps[kind])) for kind in KINDS)
  both = shares["one table", "reads and writes"]
  findings = [
    Finding(
      f"one table ends {one:.4f} nats above the floor, two end {two:.4f}",
      one - two < 0.01,
    ),
    Finding(
      f"in the one table the nearest word is of the same class for {min(both):.0%} of"
      f" words at least; by chance it would be {by_chance():.0%}",
      min(both) > 0.95,
    ),
    Finding(
      f"of two tables, the one that reads has the classes, {min(shares[reads]):.0%} at"
      f" least; the one that writes has fewer, {max(shares[writes]):.0%} at most",
      min(shares[reads]) > 0.95 and max(shares[writes]) < min(shares[reads]),
    ),
    Finding(
      f"the one that writes has boy and girl point the same way, cosine"
      f" {apart[writes]:.2f}; the one that reads tells them apart, {apart[reads]:.2f}",
      apart[writes] > apart[reads] + 0.2,
    ),
  ]
  return Report(
    {
      "Gap to the floor in nats a token, after equally many steps": losses,
      "What is in the tables, means over seeds": alike,
    },
    findings,
    draw(maps),
  )


# %% [markdown]
# The picture: the mean cosine of the words of two classes, in each table.

# %%


def draw(maps: Mapping[tuple[str, str], np.ndarray]) -> Figure:
  """One map a table."""
  figure, panels = new_figure(len(maps))
  for panel, ((kind, job), map_CC) in zip(panels, maps.items(), strict=True):
    image = panel.imshow(map_CC, cmap="RdBu_r", vmin=-1, vmax=1)
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[["left", "bottom"]].set_visible(False)
    panel.set_title(f"{kind}: {job}", fontsize="medium")
  panels[0].set_yticks(range(len(CLASSES)), CLASSES, fontsize="small")
  figure.colorbar(image, ax=panels, label="mean cosine", shrink=0.8)
  return figure


# %%
if __name__ == "__main__":
  show(run)

# %% [markdown]
# ## The verdict
#
# One table is enough. Two come a little closer to the floor, by 0.003 nats, and cost
# 2240 parameters more; in a small model that is 8 %. (In GPT-2 small it would be 31 %:
# its table has 38.6 million numbers of 124 million.) And the classes are there, in a
# model that was never told of any: who must predict what comes after a word has reason
# to treat alike what is used alike.
#
# The table that only writes is the surprise, until one thinks about it. "boy", "girl"
# and "cat" come after the same words, so that whoever writes gives them the same
# chance, and their rows can be one and the same. Only who reads must tell them apart,
# to say "he" or "she" later. With verbs it is the other way round, as the picture
# shows. Whoever writes must know the number, "sleep" or "sleeps"; whoever has read the
# verb may forget its number, and must know whether an object follows.
#
# Two tables can each do their own job. One table must do both, and does.
#
# So "similar words have similar embeddings" is true, and begs a question: similar for
# what?

# %% [markdown]
# ## Exercise
#
# Is one table slower to learn? Train half as long: in `run`, make it
# `"train.num_steps": 250`. Say first whether the distance between the two models grows
# or shrinks.

# %% [markdown]
# ## Answer
#
# It grows. After 250 steps one table is 0.110 nats above the floor, two are 0.045: more
# than twice as far, where after 500 steps 0.003 lay between them. So one table is
# slower, and catches up. What it has to learn for both jobs is not there yet either:
# boy and girl have a cosine of 0.97 in it, as in a table that writes, where after 500
# steps they have 0.84. First comes what writing needs, then what reading needs besides.
# The findings of the lesson rightly say that the claim does not hold here.
