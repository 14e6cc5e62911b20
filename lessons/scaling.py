# %% [markdown]
# # Scaling: why scores are divided by sqrt(head_dim)
#
# A head finds what to read by comparing. The token that reads has a query, each token
# that may be read has a key, both vectors of `head_dim` numbers. Their dot product is
# the score of the pair. A softmax turns the scores into weights that sum to 1: the
# higher a score, the more weight.
#
# A dot product is a sum of `head_dim` products. Where each factor is independent with
# mean 0 and variance 1, so is each product, and the variance of a sum is the sum of the
# variances: `head_dim`. A wider head shouts louder, for no other reason than being
# wider.
#
# A softmax over loud scores puts nearly all weight on one key. Chance has picked that
# key, and the gradient, which is what training follows, is nearly zero at such a place:
# the head cannot even learn that it looks at the wrong one. Divided by sqrt(head_dim),
# scores have variance 1 at any width (Vaswani et al., 2017, section 3.2.1, footnote 4).
#
# **What do you expect?** GPT-2's heads are 64 wide. Without the division, is a fresh
# head of that width lost already? What is left of the gradient at widths 64, 256 and
# 1024?

# %%
"""Why scores are divided by sqrt(head_dim): so that no width starts saturated."""

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax import SelfAttention
from lessons.report import COLOURS, Finding, new_figure, Report, show
from lessons.training import SEEDS

CLAIM = "Divided by sqrt(head_dim), attention starts equally soft at any width"
SECONDS = 10
NUM_KEYS = 64
HEAD_DIMS = (4, 16, 64, 256, 1024)
WITH, WITHOUT = "divided", "not divided"

# %% [markdown]
# ## The measurement
#
# We take the head that the model is made of and hand its own `scores` and `weights`
# queries and keys of unit variance, as they are when training begins. The published
# head has temperature 1; temperature 1 / sqrt(head_dim) takes its division back.
#
# A row of weights tells two things. Its entropy, which says how spread out it is: ln 64
# = 4.16 nats where 64 keys weigh the same, 0 where one takes all. And how well the head
# can learn from it: we pretend that training wants the weights changed by some random
# vector, send that back through the head by `jax.vjp`, and see how long the gradient is
# when it arrives, first at the scores, then at the query.
#
# The query is worth a look of its own. Between it and the scores stand the keys, which
# without the division pass on a gradient sqrt(head_dim) times as long. That pays back a
# part of the loss; the question is whether it pays back enough.


# %%
def measure(head_dim: int, scaled: bool, num_rows: int, seed: int) -> jax.Array:
  """float32 [3, num_rows]: entropy, gradient at the scores, gradient at the query."""
  temperature = 1.0 if scaled else head_dim**-0.5
  head = SelfAttention(head_dim, causal=False, temperature=temperature)
  keys = jax.random.split(jax.random.key(seed), 3)
  # each query with 64 keys of its own, so that rows are independent
  query_BTK = jax.random.normal(keys[0], (num_rows, 1, head_dim))
  key_BSK = jax.random.normal(keys[1], (num_rows, NUM_KEYS, head_dim))
  wanted_BTS = jax.random.normal(keys[2], (num_rows, 1, NUM_KEYS))

  def scores(query_BTK: jax.Array) -> jax.Array:
    return head.apply({}, query_BTK, key_BSK, method="scores")

  def weights(scores_BTS: jax.Array) -> jax.Array:
    return head.apply({}, scores_BTS, jnp.ones((1, 1, 1), bool), method="weights")

  scores_BTS, to_query = jax.vjp(scores, query_BTK)
  weights_BTS, to_scores = jax.vjp(weights, scores_BTS)
  (at_scores_BTS,) = to_scores(wanted_BTS)
  (at_query_BTK,) = to_query(at_scores_BTS)
  entropy_BT = jax.scipy.special.entr(weights_BTS).sum(-1)
  lengths_BT = [jnp.linalg.norm(x, axis=-1) for x in (at_scores_BTS, at_query_BTK)]
  return jnp.stack([entropy_BT, *lengths_BT])[..., 0]


# %% [markdown]
# ## All widths
#
# We report the row in the middle, the median. The mean would be kinder to the head
# without the division: now and then two keys come out nearly equal by chance, and that
# rare row has a large gradient while the others have none. The last column of the table
# says how many rows are as good as lost: the gradient at the query less than a tenth of
# what is usual with the division.


# %%
def run(reduced: bool = False) -> Report:
  """Entropy and gradients of fresh heads of many widths."""
  num_rows = 128 if reduced else 512
  sampled = {
    (head_dim, name): np.concatenate(
      [measure(head_dim, name == WITH, num_rows, seed) for seed in SEEDS], axis=1
    )
    for head_dim in HEAD_DIMS
    for name in (WITH, WITHOUT)
  }
  rows = []
  for (head_dim, name), values in sampled.items():
    entropy, at_scores, at_query = np.median(values, axis=1).tolist()
    usual = np.median(sampled[head_dim, WITH][2])
    rows.append(
      {
        "head_dim": head_dim,
        "scores": name,
        "entropy, nats": entropy,
        "gradient at scores": at_scores,
        "gradient at query": at_query,
        "rows lost": float(np.mean(values[2] < usual / 10)),
      }
    )

  def column(name: str, which: str) -> list[float]:
    return [row[which] for row in rows if row["scores"] == name]

  soft, hard = (column(name, "entropy, nats") for name in (WITH, WITHOUT))
  kept, gone = (column(name, "gradient at query") for name in (WITH, WITHOUT))
  lost = column(WITHOUT, "rows lost")[-1]
  widest, uniform = HEAD_DIMS[-1], float(np.log(NUM_KEYS))
  findings = [
    Finding(
      f"divided, the entropy is {min(soft):.2f} to {max(soft):.2f} nats at head_dim"
      f" {HEAD_DIMS[0]} to {widest}; uniform weights have {uniform:.2f}",
      max(soft) - min(soft) < 0.3 and min(soft) > 0.75 * uniform,
    ),
    Finding(
      f"not divided, it falls from {hard[0]:.2f} to {hard[-1]:.1e} nats",
      hard[-1] < 0.1 and hard == sorted(hard, reverse=True),
    ),
    Finding(
      f"divided, the gradient at the query stays between {min(kept):.3f} and"
      f" {max(kept):.3f}",
      max(kept) < 1.5 * min(kept),
    ),
    Finding(
      f"not divided, it first grows to {max(gone):.2f}, as the keys pass on more, then"
      f" falls to {gone[-1]:.1e} at head_dim {widest}, where {lost:.0%} of rows are"
      " lost",
      gone[0] < max(gone) and gone[-1] < 0.1 * kept[-1] and lost > 0.5,
    ),
  ]

  figure, panels = new_figure(2)
  for colour, name in zip(COLOURS, (WITH, WITHOUT), strict=False):
    for panel, index in zip(panels, (0, 2), strict=True):
      values = [sampled[head_dim, name][index] for head_dim in HEAD_DIMS]
      low, middle, high = zip(
        *[np.quantile(v, [0.25, 0.5, 0.75]).tolist() for v in values],
        strict=True,
      )
      panel.fill_between(HEAD_DIMS, low, high, color=colour, alpha=0.2, linewidth=0)
      panel.plot(HEAD_DIMS, middle, "o-", color=colour, label=f"scores {name}")
  for panel in panels:
    panel.set(xscale="log", xlabel="head_dim", xticks=HEAD_DIMS, xticklabels=HEAD_DIMS)
    panel.minorticks_off()
  panels[0].axhline(uniform, color="grey", linestyle=":", linewidth=1)
  panels[0].annotate(
    "all keys alike", (HEAD_DIMS[0], uniform), color="grey", va="bottom"
  )
  panels[0].set(title="Entropy of the weights", ylabel="nats", ylim=(-0.1, 4.6))
  panels[0].legend(frameon=False, loc="lower left")
  panels[1].set(
    title="Gradient that reaches the query",
    ylabel="length (median, middle half of rows)",
    yscale="log",
    ylim=(1e-5, 10),
  )
  title = f"A fresh head over {NUM_KEYS} keys, unit variance; medians over rows"
  return Report({title: rows}, findings, figure)


# %%
if __name__ == "__main__":
  show(run)

# %% [markdown]
# ## The verdict
#
# The division makes the start of training independent of the width, and that is what it
# is for. How bad it is without depends on the width, and less simply than one often
# reads: at GPT-2's 64 most rows still have a gradient at the query, even a longer one,
# and only from 256 on do the rows go silent one after the other.
#
# It promises nothing for later, when queries and keys have learned to agree and are no
# longer independent; a trained head may be as sharp as it likes.

# %% [markdown]
# ## Exercise
#
# If dividing by sqrt(head_dim) is good, is dividing by head_dim better? In `measure`,
# change `head_dim**-0.5` to `head_dim**0.5`: the rows that say "not divided" are then
# divided twice. Say first what becomes of the entropy, and of the gradient at the
# query.

# %% [markdown]
# ## Answer
#
# The scores become too quiet. The entropy goes to that of equal weights: 4.06 nats at
# width 4, 4.158 at 1024, where ln 64 is 4.159. A head so soft reads everything alike.
# The gradient at the scores is healthy, 0.13 to 0.12, but what arrives at the query has
# been divided too: it falls from 0.062 to 0.0155 at width 64 and 0.0038 at 1024. From
# 64 on most rows count as lost. So both sides fail, and sqrt(head_dim) is the balance
# between them, at the start of training. (What is best for a width that grows without
# end is another question: where queries and keys come to agree, their dot product grows
# like head_dim itself.)
