"""Power laws in the size of a model and in the tokens it learns from, and their fit.

The law of Hoffmann et al. (2022), section 3.3: a model of N parameters that has learned
from D tokens has the loss

    L(N, D) = E + A / N**a + B / D**b

where E is what no model can beat. On text E is one more number to be fitted. Here it is
known, so that what is left, the gap L - E, is fitted by itself.
"""

from collections.abc import Sequence
import dataclasses
import itertools

import numpy as np
from scipy.optimize import least_squares
from scipy.special import logsumexp, softmax

HUBER = 0.05  # residuals of the logarithm beyond this count less: a seed gone astray
STARTS = tuple(itertools.product((0.3, 0.8), (0.3, 0.8)))  # values of a and b
INTERVAL = (2.5, 97.5)  # percentiles of the bootstrap


@dataclasses.dataclass(frozen=True)
class Law:
  """One fitted law, with the names above."""

  A: float
  a: float
  B: float
  b: float
  E: float = 0.0

  def __call__(self, sizes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The loss; of a law that was fitted to gaps, the gap."""
    return self.E + self.A / sizes**self.a + self.B / tokens**self.b

  def best_size(self, product: np.ndarray) -> np.ndarray:
    """The N for which the loss is least where N * D is given: equation 4."""
    ratio = (self.a * self.A) / (self.b * self.B)
    return ratio ** (1 / (self.a + self.b)) * product**self.size_exponent

  @property
  def size_exponent(self) -> float:
    """N grows with this power of the computation; 0.5 for Chinchilla."""
    return self.b / (self.a + self.b)


def fit(
  sizes: np.ndarray,
  tokens: np.ndarray,
  losses: np.ndarray,
  floor_known: bool,
  near: Law | None = None,
) -> Law:
  """The law whose logarithm comes nearest to that of the losses (Huber's loss).

  Args:
    sizes, tokens, losses: [R], of each run; losses are gaps where floor_known.
    floor_known: E is 0; else it is fitted too.
    near: where to look for it; None to begin from several STARTS.
  """
  log_n, log_d, log_l = np.log(sizes), np.log(tokens), np.log(losses)
  # centred, so that what is fitted is of the order of 1
  n, d = log_n - log_n.mean(), log_d - log_d.mean()

  def parts(theta: np.ndarray) -> np.ndarray:
    """The logarithm of each part of the law: [2 or 3, R]."""
    log_a, a, log_b, b, *log_e = theta
    return np.stack(
      [log_a - a * n, log_b - b * d, *(np.full_like(n, e) for e in log_e)]
    )

  def residuals(theta: np.ndarray) -> np.ndarray:
    return logsumexp(parts(theta), axis=0) - log_l

  def slopes(theta: np.ndarray) -> np.ndarray:
    of_size, of_data, *of_floor = softmax(parts(theta), axis=0)
    return np.stack([of_size, -of_size * n, of_data, -of_data * d, *of_floor], axis=1)

  best = None
  low, middle = np.log(losses.min()), np.log(np.median(losses)) - np.log(2)
  for a, b in [(near.a, near.b)] if near else STARTS:
    start = [middle, a, middle, b] + ([] if floor_known else [low - 0.2])
    lower = [-np.inf, 1e-3, -np.inf, 1e-3] + ([] if floor_known else [-np.inf])
    upper = [np.inf, 5.0, np.inf, 5.0] + ([] if floor_known else [low])
    found = least_squares(
      residuals,
      start,
      jac=slopes,
      bounds=(lower, upper),
      loss="huber",
      f_scale=HUBER,
    )
    if best is None or found.cost < best.cost:
      best = found
  log_a, a, log_b, b, *log_e = best.x
  return Law(
    A=float(np.exp(log_a + a * log_n.mean())),
    a=float(a),
    B=float(np.exp(log_b + b * log_d.mean())),
    b=float(b),
    E=float(np.exp(log_e[0])) if log_e else 0.0,
  )


def bootstrap(
  sizes: np.ndarray,
  tokens: np.ndarray,
  losses: np.ndarray,
  floor_known: bool,
  num: int,
  seed: int = 0,
) -> list[Law]:
  """The laws of `num` samples of the runs, drawn with replacement.

  Source: Efron (1979), "Bootstrap Methods: Another Look at the Jackknife".
  """
  rng = np.random.default_rng(seed)
  drawn = rng.integers(len(sizes), size=(num, len(sizes)))
  near = fit(sizes, tokens, losses, floor_known)
  return [fit(sizes[i], tokens[i], losses[i], floor_known, near) for i in drawn]


def interval(values: Sequence[float]) -> tuple[float, float]:
  """Where 95 % of the values lie."""
  low, high = np.percentile(values, INTERVAL)
  return float(low), float(high)
