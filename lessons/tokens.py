# %% [markdown]
# # Tokens: the same text, cut in four ways
#
# A model does not read text. It reads *tokens*: the text is cut into pieces, each piece
# has a number, and there are only so many different ones, the *vocabulary*. Where to
# cut is a choice.
#
# - *Characters*: each letter is a token. The vocabulary is tiny, and texts become long.
# - *Bytes*: what a computer stores. All text there is can be written in 256 of them.
#   For English letters it is one byte each.
# - *Byte pairs*: one begins with bytes, and makes a new token of the two neighbours
#   that are most often seen together. One does that again and again, also with the new
#   tokens (Sennrich et al., 2016, "Neural Machine Translation of Rare Words with
#   Subword Units"). GPT-2 has 50,000 such steps behind it. We take 64.
# - *Words*: each word is a token. That is fair here and hardly anywhere else. Our
#   language has 69 words; a real one always has another that nobody thought of.
#
# Which is best? The loss in nats a token does not tell, for a nat a letter is not a nat
# a word. One has to ask what all of them share: the text. The *bits a byte* are the
# loss of the whole text over the number of its bytes. A nat, the unit of the natural
# logarithm, is 1 / ln 2 = 1.44 bits. Who predicts a text with 0.6 bits a byte could
# send it in 0.6 bits for each byte, by arithmetic coding; this is a measure of
# compression.
#
# On a real text one can only compare losses. Our text is a toy language, whose every
# word has a known probability. From that follows, exactly, how probable the next
# *letter* is, or the next byte pair. So there is a *floor*, the loss of whoever knows
# the language perfectly, and it can be asked what is left of each loss above it.
#
# **What do you expect?** Does the floor in bits a byte depend on how the text is cut?
# Models of equal size read the same text: which one comes closest to the floor? And if
# not the text but the work is to be equal, so that those with fewer tokens may read
# more?

# %%
"""Characters, bytes, byte pairs, words: the same text, in bits a byte."""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import jax
from matplotlib.figure import Figure
import numpy as np

from gpt2_flax.datasets.pipeline import validation_windows
from gpt2_flax.training.flops import flops_per_token
from lessons.report import COLOURS, Finding, new_figure, Report, show
from lessons.spelled import line_bytes, Spelled, SpelledConfig
from lessons.training import experiment, SEEDS, train, Trained

CLAIM = "The fewer tokens a text is cut into, the closer a model comes to its floor"
SECONDS = 130

# %% [markdown]
# A text is a line: the first 12 words of a story, some 60 bytes. `lessons/spelled.py`
# cuts it, and knows the probability of each next token. For letters it goes like this.
# After "the c" the next letter is an a if the word is cat or cats; so the probabilities
# of these two words are added, and divided by those of all words that begin with c.
#
# Each model sees a line from its beginning. It has room for as many tokens as a line
# can have, and is the same otherwise: two layers of four heads, 64 wide.

# %%
ROOM = {"characters": 78, "bytes": 78, "byte pairs": 45, "words": 12}


@dataclasses.dataclass(frozen=True)
class Result:
  """What several seeds of one experiment came to.

  Attributes:
    cut: how the text is cut.
    num_steps: of training.
    work: multiplications and additions of the training, in all.
    vocabulary: how many different tokens there are.
    bytes_a_token: on the validation lines.
    loss, floor: in nats a token, of each seed and of the language.
    models: of each seed.
  """

  cut: str
  num_steps: int
  work: float
  vocabulary: int
  bytes_a_token: float
  loss: Sequence[float]
  floor: float
  models: Sequence[Trained]

  def bits(self, nats_a_token: float) -> float:
    """Nats a token as bits a byte."""
    return float(nats_a_token / math.log(2) / self.bytes_a_token)

  @property
  def gaps(self) -> list[float]:
    """Bits a byte above the floor, of each seed."""
    return [self.bits(loss - self.floor) for loss in self.loss]


def changes(cut: str, num_steps: int, num_windows: int) -> dict[str, Any]:
  """What is not as in the toy experiment."""
  return {
    "model.context_length": ROOM[cut],
    "train.num_steps": num_steps,
    "train.batch_size": 16,
    "optimizer.warmup_steps": num_steps // 4,
    "eval.num_windows": num_windows,
  }


def work_a_step(cut: str) -> float:
  """Multiplications and additions of one step of training."""
  config, _ = experiment(SpelledConfig(cut), changes(cut, 1, 1))
  tokens = config.train.batch_size * config.model.context_length
  return flops_per_token(config.model) * tokens


def measure(cut: str, num_steps: int, num_windows: int, seeds: Sequence[int]) -> Result:
  """Trains on lines that are cut in one way."""
  data = SpelledConfig(cut)
  models = train(data, changes(cut, num_steps, num_windows), seeds)
  language = data.make(ROOM[cut])
  windows = validation_windows(language, num_windows)
  num_tokens = np.count_nonzero(language.batch(windows)["targets"] >= 0)
  return Result(
    cut,
    num_steps,
    num_steps * work_a_step(cut),
    language.tokenizer.vocab_size,
    sum(line_bytes(language, window) for window in windows) / int(num_tokens),
    [trained.loss for trained in models],
    models[0].floor,
    models,
  )


# %% [markdown]
# Where in a word does the loss arise? For the model of characters we add up the bits by
# the place in the word: the space before it, its first letter, its second and so on.


# %%
def bits_by_place(language: Spelled, trained: Trained, windows: np.ndarray) -> tuple:
  """Bits a word at each place in a word: of the model, and of the language.

  Returns:
    Two arrays; number 0 is of the space, number i of the i-th letter.
  """
  batch = language.batch(windows)
  inputs, targets = batch["inputs"], batch["targets"]
  logits = jax.jit(trained.model.apply)(trained.params, inputs)
  exact = np.stack([language.next_token_probabilities(row) for row in inputs])
  at = np.maximum(targets, 0)[..., None]
  with np.errstate(divide="ignore"):
    of_language = -np.log2(np.take_along_axis(exact, at, -1)[..., 0])
  of_model = -np.take_along_axis(
    np.asarray(jax.nn.log_softmax(logits), np.float64), at, -1
  )[..., 0] / math.log(2)
  place, here = np.zeros_like(targets), np.full(len(targets), -1)
  for t in range(targets.shape[1]):
    here = np.where(np.isin(targets[:, t], list(language.firsts)), 0, here + 1)
    place[:, t] = here
  counts = targets >= 0
  num_words = np.count_nonzero(counts & (place == 0))
  return tuple(
    np.bincount(place[counts], bits[counts]) / num_words
    for bits in (of_model, of_language)
  )


# %% [markdown]
# Two comparisons. *Equal text*: all train for as many steps, and read the same number
# of lines. *Equal work*: each may go on until it has done as many multiplications as
# the model of characters has.


# %%
def run(reduced: bool = False) -> Report:
  """Trains on the same text in four cuts, with equal text and with equal work."""
  seeds = SEEDS[:1] if reduced else SEEDS
  num_steps, num_windows = 300, 64 if reduced else 256
  work = num_steps * work_a_step("characters")
  equal_text = [measure(cut, num_steps, num_windows, seeds) for cut in ROOM]
  equal_work = [
    measure(cut, round(work / work_a_step(cut)), num_windows, seeds)
    for cut in ("byte pairs", "words")
  ]
  language = SpelledConfig("characters").make(ROOM["characters"])
  windows = validation_windows(language, num_windows)
  by_place = [bits_by_place(language, m, windows) for m in equal_text[0].models]
  return report(equal_text, equal_work, np.array(by_place))


def report(
  equal_text: Sequence[Result], equal_work: Sequence[Result], by_place: np.ndarray
) -> Report:
  """The verdict.

  Args:
    by_place: as from `bits_by_place`, float [seeds, 2, places].
  """
  rows = [
    {
      "cut": result.cut,
      "equal": equal,
      "vocabulary": result.vocabulary,
      "bytes a token": result.bytes_a_token,
      "steps": result.num_steps,
      "work, 1e9": round(result.work / 1e9),
      "loss, nats a token": float(np.mean(result.loss)),
      "floor, nats a token": result.floor,
      "loss, bits a byte": result.bits(float(np.mean(result.loss))),
      "floor, bits a byte": result.bits(result.floor),
      "above it, by seed": " ".join(f"{gap:.3f}" for gap in result.gaps),
    }
    for equal, results in (("text", equal_text), ("work", equal_work))
    for result in results
  ]
  floors = [result.bits(result.floor) for result in equal_text]
  characters, as_bytes, pairs, words = equal_text
  more_pairs, more_words = equal_work
  model, language = by_place.mean(0)
  missed = model - language
  findings = [
    Finding(
      f"the floor is the text's, not the cut's: {min(floors):.4f} to"
      f" {max(floors):.4f} bits a byte; in nats a token it is {characters.floor:.2f} to"
      f" {words.floor:.2f}",
      max(floors) < 1.01 * min(floors),
    ),
    Finding(
      "characters and bytes are the same here:"
      f" {np.mean(characters.gaps):.3f} and {np.mean(as_bytes.gaps):.3f} bits above it",
      bool(
        abs(np.mean(characters.gaps) - np.mean(as_bytes.gaps))
        < np.mean(characters.gaps) / 3
      ),
    ),
    Finding(
      "with equal text, byte pairs stay"
      f" {np.mean(pairs.gaps):.3f} above the floor and words {np.mean(words.gaps):.3f}",
      max(words.gaps) < min(pairs.gaps)
      and max(pairs.gaps) < min(*characters.gaps, *as_bytes.gaps),
    ),
    Finding(
      f"with equal work it is {np.mean(more_pairs.gaps):.3f} and"
      f" {np.mean(more_words.gaps):.3f}: they read"
      f" {more_pairs.num_steps / characters.num_steps:.1f} and"
      f" {more_words.num_steps / characters.num_steps:.1f} times the text",
      max(more_words.gaps) < min(more_pairs.gaps)
      and max(more_pairs.gaps) < min(pairs.gaps)
      and max(more_words.gaps) < min(words.gaps),
    ),
    Finding(
      f"of the {missed.sum():.1f} bits a word that the model of characters misses,"
      f" {missed[1] / missed.sum():.0%} are at the first letter, which has"
      f" {language[1] / language.sum():.0%} of what cannot be known",
      bool(missed[1] == missed.max()),
    ),
  ]
  table = "The same language in four cuts; means over seeds"
  return Report({table: rows}, findings, draw(equal_text, equal_work, by_place))


# %%
def draw(
  equal_text: Sequence[Result], equal_work: Sequence[Result], by_place: np.ndarray
) -> Figure:
  """A line cut in four ways, what is above the floor, and where in the word."""
  figure, (left, middle, right) = new_figure(3)
  example = "the queens that the dog follows sing ."
  for row, cut in enumerate(ROOM):
    language = SpelledConfig(cut).make(ROOM[cut])
    at = 0
    pieces = [piece for word in example.split() for piece in language.spellings[word]]
    for i, piece in enumerate(pieces):
      text = language.tokenizer.token(piece)
      text = f" {text}" if cut == "words" else text
      shade = (COLOURS[0], COLOURS[5])[i % 2]
      left.barh(-row, len(text), left=at, height=0.7, color=shade, alpha=0.35)
      for offset, letter in enumerate(text):
        left.text(at + offset + 0.5, -row, letter, ha="center", va="center", fontsize=7)
      at += len(text)
  left.set_yticks([0, -1, -2, -3], list(ROOM))
  left.set(xticks=[], title="Each box is a token")
  left.spines[["left", "bottom"]].set_visible(False)
  left.tick_params(length=0)

  by_cut = {result.cut: result for result in equal_work}
  for i, result in enumerate(equal_text):
    for shift, one, colour, label in (
      (-0.2, result, COLOURS[0], "equal text"),
      (0.2, by_cut.get(result.cut), COLOURS[1], "equal work"),
    ):
      if one is not None:
        bar = middle.bar(i + shift, np.mean(one.gaps), 0.38, color=colour, alpha=0.6)
        bar.set_label(label if i in (0, 2) and not (i == 2 and shift < 0) else None)
        x = np.full(len(one.gaps), i + shift)
        middle.plot(x, one.gaps, "o", color="black", markersize=3)
  middle.set_xticks(range(len(equal_text)), list(ROOM))
  middle.set(ylabel="bits a byte above the floor", title="What is left to learn")
  middle.legend(frameon=False)

  model, exact = by_place.mean(0)[:, :8]
  places = np.arange(len(model))
  right.bar(places, exact, color=COLOURS[2], alpha=0.6, label="cannot be known")
  right.bar(
    places,
    model - exact,
    bottom=exact,
    color=COLOURS[1],
    alpha=0.6,
    label="not learned",
  )
  right.set_xticks(places, ["space", *map(str, places[1:])])
  right.set(
    xlabel="letter of the word",
    ylabel="bits a word",
    title="Characters: where in the word",
  )
  right.legend(frameon=False)
  return figure


# %%
if __name__ == "__main__":
  show(run)

# %% [markdown]
# ## The verdict
#
# The floor is a property of the text: 0.595 bits a byte in every cut. (With words it is
# 0.596, for only they say where the last word of a line ends; "cat" might go on to
# "cats".) Each token of 0.41 nats or of 2.05 is as good as it can be. To compare losses
# a token tells nothing about models.
#
# Above the floor the cuts differ by a lot. After the same text, the model of characters
# has 0.14 bits a byte left to learn, the one of byte pairs 0.063, the one of words
# 0.031. Characters and bytes are the same here, for the same letters go by other
# numbers, and 230 tokens that never come are soon learned away. With the same work the
# distance grows: byte pairs may read 1.6 times the text and come to 0.045, words 7.4
# times and come to 0.003.
#
# Why are characters hard? Look at where their loss arises. The first letter of a word
# is nearly the whole decision: three quarters of all that cannot be known, and half of
# what is not learned. The letters after it are nearly certain, and each costs as much
# work as the first. And what another cut gets as one token, these models must put
# together from five before they can look for the subject of a verb.
#
# This is no proof that words are best. Whoever made the words knew where they begin,
# and that there are 69. On a language where new ones turn up, a model of words is mute
# before them. Byte pairs were told nothing, found most words by counting, and can write
# anything. This is the bargain that GPT-2 made. And these are short trainings. A gap of
# 0.14 is not the end of what a model of characters can learn.

# %% [markdown]
# ## Exercise
#
# With 64 merges of pairs, " the" and " queen" are tokens, and "dog" is not yet. In
# `lessons/spelled.py`, let `pairs` go on to 256 merges (`257 + 256`), and set the room
# for byte pairs to 14 tokens. How many tokens does the vocabulary then have, and where
# between the old pairs and the words does the model end?

# %% [markdown]
# ## Answer
#
# It has 411: after 154 merges there is nothing left to merge, since each word is one
# token with the space before it. The three models end 0.029 to 0.034 bits a byte above
# the floor, where those of words end. So whatever words have, pairs can find. With 16
# merges, room for 66 tokens and one seed it was 0.104, on the way from bytes.
