"""How far apart two computations of the same numbers may end: derived, not tuned.

An operation in floating point gives the exact result, rounded: off by at most u times
its size, u = 2^-24 in float32 (Higham, 2002, "Accuracy and Stability of Numerical
Algorithms", section 2.2). n operations, each on the result of the one before, are n
roundings in a row: together at most n u (section 3.1). In which order a compiler adds,
what it fuses, and how wide a processor's registers are, decides how each rounding
falls, not how many there are. So two ways to compute a value end within as many u as
they have roundings in a row together; where one of them is exact (float64), as many as
the other has. The counts, of one way:

  a sum of n products     n         one product, n - 1 additions
  a linear layer          n + 1     and the bias
  a LayerNorm over D      2 D + 8   the mean, the variance, and 8 steps between
  a softmax over S        S + 3     a difference, an exp (two), a sum, a quotient
  a GELU                  10
  a block                 norm, projection, scores (K + 1), softmax, mix (S),
                          projection, sum; norm, projection, GELU, projection, sum

The longest way is through the model of golden/by_layer: D = 12, K = 4, F = 48 and ten
tokens make 192 a block; three blocks, the embedding, the last norm and the logits 621;
both ways 1242. So many never all fall to the same side: they are a random walk, and
less than one in 30 million ends beyond 6 sqrt(1242) = 212 u (Higham & Mary, 2019, "A
New Approach to Probabilistic Rounding Error Analysis", theorem 2.4: 2 exp(-6^2 / 2)).
ROUNDINGS is the next power of two; tests that have a reason for another count say it. A
gradient goes through the model and back, which is twice as many. A loss while training
has its own, and those of gradients: by as many is off what it has fallen along them,
which is less than itself, however many the steps. So it has three times as many.

In bfloat16, u = 2^-8, sums of products, softmaxes and the insides of norms are float32
and count for nothing. A linear layer has 4 (kernel, product, bias, sum), a norm 1, the
weights 1, the mix 1: 36 a block, with query and key counted both; before the blocks are
3 (embedding, position, sum) and after them 2 (norm, output embedding).

All this is relative to the size of what is rounded. What is left of large parts that
cancel is small, but its roundings are those of the parts: there the test names the size
of the parts, as `scale`. A softmax hands on its scores' roundings as many times as they
are large, up to 15 times here; for that a row as long has room, since it takes few
roundings to a score, and hardly one is as large as u.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROUNDINGS = 256


def assert_close(
  found: Any,
  expected: Any,
  roundings: float = ROUNDINGS,
  *,
  scale: Any = None,
  dtype: Any = None,
) -> None:
  """Each array of `found` is that of `expected`, but for so many roundings in a row.

  The largest difference is at most roundings * u * the largest absolute value expected.
  Structure, shape, kind of number (floating or not) and whatever is not finite (nan,
  inf, -inf) must be the same; integers and truth values must be equal.

  Args:
    found, expected: arrays, or trees of them.
    roundings: in a row, on both ways together.
    scale: in place of the largest value expected: a number, an array whose largest
      absolute value counts, or a tree of such with the structure of `expected`.
    dtype: whose u. None is float64 where both are, else float32. Numbers of a narrower
      dtype are refused, so bfloat16 must be named.

  Raises:
    AssertionError: it says which arrays differ, by how much, and what was allowed.
  """
  named, structure = jax.tree_util.tree_flatten_with_path(found)
  leaves, expected_structure = jax.tree.flatten(expected)
  assert structure == expected_structure, f"{structure} is not {expected_structure}"
  scales, scale_structure = jax.tree.flatten(expected if scale is None else scale)
  if scale_structure != structure:
    assert len(scales) == 1, "scale: must be one, or have the structure of expected"
    scales *= len(leaves)
  problems = []
  for (path, leaf), other, size in zip(named, leaves, scales, strict=True):
    problem = _difference(np.asarray(leaf), np.asarray(other), roundings, size, dtype)
    if problem:
      problems.append(f"{jax.tree_util.keystr(path) or 'found'} {problem}")
  assert not problems, "\n".join(problems)


def walk(count: float) -> float:
  """How many u off `count` roundings in a row may end: at most `count`, and hardly ever
  more than 6 sqrt(count)."""
  return min(count, 6 * math.sqrt(count))


def sizes(gradients: Any) -> Any:
  """The scale of gradients, or of parameters after a step: their own, but for one.

  A softmax does not see what is added to all scores of a query, so the key's bias has
  no gradient: a sum of parts as large as those of the query's bias, of which only the
  roundings are left. So it is measured by the query's bias.
  """
  named, structure = jax.tree_util.tree_flatten_with_path(gradients)
  by_name = {jax.tree_util.keystr(path): leaf for path, leaf in named}
  names = [name.replace("['key']['bias']", "['query']['bias']") for name in by_name]
  return jax.tree.unflatten(structure, [by_name[name] for name in names])


def _difference(
  found: np.ndarray, expected: np.ndarray, roundings: float, scale: Any, dtype: Any
) -> str:
  """What is wrong with one array, or nothing."""
  if found.shape != expected.shape:
    return f"has shape {found.shape}: must be {expected.shape}"
  both = found.dtype, expected.dtype
  for kind in (np.floating, np.integer, np.bool_):
    if jnp.issubdtype(both[0], kind) != jnp.issubdtype(both[1], kind):
      return f"is {both[0]}: must be a kind of {both[1]}"
  if not jnp.issubdtype(both[0], np.floating):
    equal = np.array_equal(found, expected)
    return "" if equal else f"is {found}: must be {expected}"
  if dtype is None:
    dtype = np.float64 if set(both) == {np.dtype(np.float64)} else np.float32
  epsilon = float(jnp.finfo(dtype).eps)  # from 1 to the next number, which is 2 u
  for one in both:
    if jnp.finfo(one).eps > epsilon:
      return f"or what is expected is {one}: narrower than {jnp.dtype(dtype)}"

  found, expected, scale = (np.asarray(x, np.float64) for x in (found, expected, scale))
  finite = np.isfinite(found) & np.isfinite(expected)
  right = finite | (found == expected) | (np.isnan(found) & np.isnan(expected))
  if not right.all():
    at = np.unravel_index(np.argmin(right), right.shape)
    return f"is {found[at]} at {list(map(int, at))}: must be {expected[at]}"
  size = np.max(np.abs(scale), where=np.isfinite(scale), initial=0.0)
  most = roundings * epsilon / 2 * size
  apart = np.abs(np.subtract(found, expected, where=finite, out=np.zeros(finite.shape)))
  if np.max(apart, initial=0.0) <= most:
    return ""
  at = np.unravel_index(np.argmax(apart), apart.shape)
  where, values = list(map(int, at)), f"{found[at]} for {expected[at]}"
  return (
    f"is off by {apart[at]:.3g} at {where}, {values}: at most {most:.3g}, which is"
    f" {roundings:g} roundings of {jnp.dtype(dtype)} at the size of {size:.3g}"
  )
