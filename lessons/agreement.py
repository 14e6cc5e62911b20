# %% [markdown]
# # Agreement: who remembers whether it was one cat or many?
#
# The toy language has grammar in it. Read this, and say the next word:
#
#     these boys that this girl near every dog likes ...
#
# It must be a verb, and it must be "see" or "sleep", not "sees" or "sleeps": it is the
# boys who do it, though a girl, a dog and a verb in the singular came in between. A
# model that goes by the nearest noun fails, as most of us did once in school. So
# something in it must reach back over the clause, past the wrong nouns, to the right
# one. Reading back is what attention heads do. Which head is that? And is it one?
#
# We write such phrases ourselves, to know where the subject is. Everything between it
# and the verb has the other number, so that who goes by the nearest noun is always
# wrong.
#
# **What do you expect?** Take away the head that looks at the subject (an ablation, as
# one says): does the model now get the verb wrong? Keep that head alone in its layer:
# is the model still right?

# %%
"""The verb and its subject: which head finds it, and whether it is alone with that."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np

from gpt2_flax.datasets.english import DETERMINERS, INTRANSITIVE, NOUNS, TRANSITIVE
from gpt2_flax.datasets.grammar import Grammar, GrammarConfig
from gpt2_flax.datasets.pipeline import validation_windows
from gpt2_flax.interpret import ablate_heads, trace
from gpt2_flax.transformer import GPT2
from lessons.report import COLOURS, Finding, new_figure, Report, show
from lessons.training import SEEDS, train, Trained

CLAIM = "One head finds the verb's subject across a clause; it is enough, not needed"
SECONDS = 78

PLURAL = INTRANSITIVE + TRANSITIVE
SINGULAR = tuple(f"{verb}s" for verb in PLURAL)
SUBJECT = 2  # its position: the start token, a determiner, the noun

# S the subject, O nouns of the other number, V their verbs.
PHRASES = {
  0: "S",
  4: "S that O V",
  7: "S that O near O V",
  8: "S that O that O V V",
}  # by how many words stand between the subject and the verb that is asked for


def phrase(rng: np.random.Generator, distance: int, many: bool) -> str:
  """What is said before the verb."""

  def noun(many: bool) -> str:
    who = "they" if many else ("he", "she", "it")[rng.integers(3)]
    return f"{rng.choice(DETERMINERS[who])} {rng.choice(NOUNS[who])}"

  def part(symbol: str) -> str:
    match symbol:
      case "S":
        return noun(many)
      case "O":
        return noun(not many)
      case "V":
        return rng.choice(TRANSITIVE) + ("s" if many else "")
    return symbol

  return " ".join(part(symbol) for symbol in PHRASES[distance].split())


def phrases(language: Grammar, distance: int, num: int) -> np.ndarray:
  """int [num, T]: those with an odd index have a subject in the plural."""
  rng = np.random.default_rng((distance, num))
  tokenizer = language.tokenizer
  return np.array(
    [tokenizer.start(phrase(rng, distance, many=i % 2 == 1)) for i in range(num)]
  )


# %% [markdown]
# The model's answer is the probability that it gives to all verbs of the right number,
# as a share of what it gives to verbs at all. 1 is always right, 0.5 is guessing.
#
# To take a head away, we let it say what it says on average. That takes what it knows
# of this sentence, and leaves the rest of the model with an input that it is used to.


# %%
@functools.partial(jax.jit, static_argnames="model")
def right_share(
  model: GPT2,
  params: Any,
  tokens_BT: jax.Array,
  verbs_2N: jax.Array,
  value: jax.Array,
  masks_MLH: jax.Array,
) -> jax.Array:
  """For each set of ablated heads the mean share of the right number: [M].

  Args:
    verbs_2N: token ids, the singular forms and the plural.
    value: what ablated heads say.
  """

  def share(heads_LH: jax.Array) -> jax.Array:
    logits_BTV, _ = trace(
      model, params, tokens_BT, [ablate_heads(heads_LH, value)], taps=()
    )
    of_number_B2 = jax.nn.softmax(logits_BTV[:, -1])[:, verbs_2N].sum(-1)
    right_B = jnp.where(
      jnp.arange(len(of_number_B2)) % 2 == 1, of_number_B2[:, 1], of_number_B2[:, 0]
    )
    return (right_B / of_number_B2.sum(-1)).mean()

  return jax.lax.map(share, masks_MLH)


# %% [markdown]
# Of all heads we pick the one that looks at the subject most, from where the verb is
# predicted: the looker. Then we ask four questions. Is the model right without it? Is
# it right with it as the only head of its layer? Without all heads of that layer? And
# what if the one head goes that hurts most, whichever it is?

# %%
ABLATIONS = (
  "whole",
  "without the looker",
  "the looker alone",
  "without its layer",
  "without the worst",
)


def dissect(trained: Trained, language: Grammar, num: int) -> dict[str, Any]:
  """One model: where it looks, and its right shares [distances, ablations]."""
  model, params = trained.model, trained.params
  num_layers, num_heads = model.config.num_layers, model.config.num_heads
  encode = language.tokenizer.encode
  verbs = jnp.array([encode(" ".join(SINGULAR)), encode(" ".join(PLURAL))])
  inputs = language.batch(validation_windows(language, 128))["inputs"]
  keep = jax.jit(
    lambda tokens, tap: trace(model, params, tokens, taps=[tap])[1], static_argnums=1
  )
  value = keep(inputs, "head_output").head_output.mean((2, 3), keepdims=True)

  texts = {distance: phrases(language, distance, num) for distance in PHRASES}
  looks = {}  # distance -> weight on the subject, [L, H]
  for distance, tokens in texts.items():
    weights_LHBTS = keep(tokens, "weights").weights
    looks[distance] = np.asarray(weights_LHBTS[..., -1, SUBJECT].mean(-1))
  across = np.mean([looks[distance] for distance in PHRASES if distance], axis=0)
  looker = np.unravel_index(across.argmax(), across.shape)

  single = np.eye(num_layers * num_heads, dtype=bool).reshape(-1, num_layers, num_heads)
  without = np.zeros((num_layers, num_heads), bool)
  without[looker] = True
  layer = np.zeros_like(without)
  layer[looker[0]] = True
  masks = np.stack([np.zeros_like(without), without, layer & ~without, layer, *single])
  shares = []
  for tokens in texts.values():
    share = np.asarray(right_share(model, params, tokens, verbs, value, masks))
    shares.append([*share[:4], share[4:].min()])
  return {
    "looker": looker,
    "example": (texts[7][1], np.asarray(keep(texts[7][1:2], "weights").weights)),
    "by distance": {distance: look[looker] for distance, look in looks.items()},
    "shares": np.array(shares),
  }


# %% [markdown]
# Three seeds: the same language, and three different divisions of labour.


# %%
def run(reduced: bool = False) -> Report:
  """Trains the toy model, finds the head that looks at the subject, removes heads."""
  seeds, num = (SEEDS[:1], 60) if reduced else (SEEDS, 200)
  num_steps, num_windows = (400, 64) if reduced else (600, 512)
  changes = {"train.num_steps": num_steps, "eval.num_windows": num_windows}
  data = GrammarConfig()
  trained = train(data, changes, seeds)
  language = data.make(trained[0].model.config.context_length)
  models = [dissect(one, language, num) for one in trained]

  rows = [
    {
      "seed": seed,
      "words between": distance,
      "looker": "layer {} head {}".format(*model["looker"]),
      "its weight on the subject": float(model["by distance"][distance]),
      **dict(zip(ABLATIONS, map(float, shares), strict=True)),
    }
    for seed, model in zip(seeds, models, strict=True)
    for distance, shares in zip(PHRASES, model["shares"], strict=True)
  ]
  shares = np.array([model["shares"] for model in models])  # seed, distance, ablation
  one_clause = shares[:, 1:3]
  look = min(model["by distance"][distance] for model in models for distance in (4, 7))
  whole, without, alone = (shares[..., i] for i in range(3))
  findings = [
    Finding(
      "the model knows the verb's number across a clause, past words of the other"
      f" number: {one_clause[..., 0].min():.3f} at least"
      f" ({whole[:, 3].min():.2f} across two, one in the other)",
      one_clause[..., 0].min() > 0.95,
    ),
    Finding(
      "one head spends on the subject, of all words that it could look at, at least"
      f" {look:.2f} of its weight",
      look > 0.75,
    ),
    Finding(
      "that head is enough: alone in its layer, the right number's share is"
      f" {alone.min():.2f} at least, at any distance",
      alone.min() > 0.9,
    ),
    Finding(
      f"it is not needed: without it {without[:, 1:3].min():.2f} at least across a"
      " clause, so others stand in; without the worst head to lose, whichever it is,"
      f" {one_clause[..., 4].min():.2f}",
      one_clause[..., 4].min() > 0.6,
    ),
    Finding(
      f"with distance the spare wears thin: without it {without[:, 3].min():.2f} to"
      f" {without[:, 3].max():.2f} across two clauses",
      without[:, 3].mean() < without[:, 1:3].mean(),
    ),
  ]
  words = [language.tokenizer.token(int(t)) for t in models[0]["example"][0]]
  table = "The right number's share of what the model gives to verbs; 0.5 is guessing"
  return Report({table: rows}, findings, draw(models, words, shares))


# %%
def draw(models: list[dict[str, Any]], words: list[str], shares: np.ndarray) -> Figure:
  """Where all heads look in one phrase, and what is right without some."""
  figure, (left, right) = new_figure(2)
  weights_LHT = models[0]["example"][1][:, :, 0, -1]
  num_layers, num_heads, length = weights_LHT.shape
  image = left.imshow(
    weights_LHT.reshape(-1, length), cmap="Blues", vmin=0, vmax=1, aspect="auto"
  )
  left.axhline(num_heads - 0.5, color="black", linewidth=1)
  left.set_xticks(range(length), words, rotation=60, ha="right", rotation_mode="anchor")
  heads = np.ndindex(num_layers, num_heads)
  left.set_yticks(
    range(num_layers * num_heads), [f"{layer}.{head}" for layer, head in heads]
  )
  left.set(ylabel="layer.head", title="Where heads look for the verb's number")
  left.spines[["left", "bottom"]].set_visible(False)
  figure.colorbar(image, ax=left, label="attention weight")

  styles = zip(ABLATIONS, ("black", *COLOURS), "oD^vs", strict=False)
  for i, (name, colour, marker) in enumerate(styles):
    mean = shares[..., i].mean(0)
    right.plot(range(len(mean)), mean, color=colour, marker=marker, label=name)
    at = np.arange(len(mean)) + 0.04 * (i - 2)
    for of_seed in shares[..., i]:
      right.plot(at, of_seed, marker, color=colour, alpha=0.35, markersize=4)
  right.axhline(0.5, color="grey", linestyle=":", linewidth=1)
  right.annotate("guessing", (0, 0.505))
  right.set_xticks(range(len(PHRASES)), PHRASES)
  right.set(
    xlabel="words between subject and verb",
    ylabel="share of the right number",
    title="Right, with heads taken away",
  )
  right.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 0.08))
  return figure


# %%
if __name__ == "__main__":
  show(run)

# %% [markdown]
# ## The verdict
#
# So "which head carries agreement?", the question we came with, was too simple. There
# is a head for it in each model, in the second layer, at another place each time. It
# finds the subject by itself: alone in its layer, it is enough. But training has no
# reason to stop at one: others learn it too, and a head that does not look at the
# subject may get the number from a word that has it already. Where sentences are rare,
# as those with two clauses are, the copies are bad or missing. There one can see what
# the looker is for.
#
# How much of its weight a looker spends on the subject is another matter. We claimed
# three quarters at least, in every model, and one of three has half. An earlier version
# of this program, which rounded differently, had 0.88 at least from the same seeds, and
# the claim held. That is how much three seeds can prove.
#
# And our phrases have a weakness: all words in between have the other number. The
# exercise takes that away, and with it a part of this verdict.

# %% [markdown]
# ## Exercise
#
# Make it easy: let the nouns and verbs in between have the subject's own number. In
# `phrase`, "O" becomes `noun(many)`, and a "V" that belongs to many ends without "s":
# `("" if many else "s")`. Going by the nearest noun is now right. How much does the
# model lose without the looker?

# %% [markdown]
# ## Answer
#
# It loses more than before, which is the last thing one expects. With the looker gone
# the right share falls to 0.63 to 0.67 across clauses with the first seed, and to 0.69
# to 0.81 with the second; the third still has 0.997. Without the looker's whole layer
# it is 0.08 to 0.30, far below guessing!
#
# So what is left without that layer answers with the *other* number than that of the
# nearest words. With words in between of the other number, as the lesson has them, this
# rule is right: 0.70 to 0.92 in the last but one column of its table, model by model
# one minus what we have here. A part of what looked like knowledge about the subject
# was that rule, and of the copies too. The whole model is right in both cases, 0.996
# and more across one clause. The looker alone in its layer is right with the lesson's
# phrases, 0.94 and more, and not with these, where it has 0.41 to 0.87 beyond the bare
# subject.
#
# A test that can be passed in the wrong way gets passed in the wrong way. A control,
# like this one, is how one finds out.
