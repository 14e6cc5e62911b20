"""The n-gram distributions of a toy language, from its exact ones.

Axes: N windows, T place, V vocab_size.
"""

import numpy as np

from gpt2_flax.datasets import ToyLanguage


def exact_rows(language: ToyLanguage, inputs_NT: np.ndarray) -> np.ndarray:
  """The language's own distribution at each place: float64 [N, T, V]."""
  return np.stack([language.next_token_probabilities(row) for row in inputs_NT])


def ngram_rows(
  inputs_NT: np.ndarray, exact_NTV: np.ndarray, n: int, num_wanted: int
) -> np.ndarray:
  """The n-gram distribution at each place of the first windows: [num_wanted, T, V].

  Args:
    inputs_NT: all windows of the sample. Near its beginning a window has fewer words
      than n - 1 to look back at; then all of them count.
    exact_NTV: as from `exact_rows`.
    num_wanted: of how many windows.
  """
  num, length, vocab_size = exact_NTV.shape
  context_NT = np.zeros((num, length), np.int64)  # a number for the last n - 1 words
  for back in range(n - 1):
    earlier_NT = np.zeros_like(context_NT)
    earlier_NT[:, back:] = 1 + inputs_NT[:, : length - back]
    context_NT = context_NT * (1 + vocab_size) + earlier_NT
  _, which = np.unique(context_NT, return_inverse=True)
  which = which.reshape(-1)
  order = np.argsort(which, kind="stable")
  starts = np.searchsorted(which[order], np.arange(which.max() + 1))
  sums = np.add.reduceat(exact_NTV.reshape(-1, vocab_size)[order], starts)
  means = sums / np.bincount(which)[:, None]
  return means[which[: num_wanted * length]].reshape(num_wanted, length, vocab_size)
