"""What the model still sees of each text in a batch, and which texts have ended."""

from collections.abc import Sequence

import numpy as np

from gpt2_flax.rows.prompts import pad_left


class Windows:
  """The last tokens of each row, at most context_length of them.

  Attributes:
    ended: which rows get no more tokens.
  """

  def __init__(
    self,
    texts: list[list[int]],
    context_length: int,
    *,
    stop_ids: Sequence[int],
    slides: bool,
  ):
    """Rows that begin with these texts.

    Args:
      texts: at least one token each; the lists are taken over.
      stop_ids: tokens that end a row.
      slides: a full window forgets its older half; else its row ends.
    """
    self.ended = [False] * len(texts)
    self._texts = texts
    self._context_length = context_length
    self._stop_ids = frozenset(stop_ids)
    self._slides = slides

  def reread(self) -> tuple[np.ndarray, np.ndarray, int]:
    """What is to be read: int32 [B, T], the padding [B], and for how many tokens.

    A full window keeps its newer half, which is read anew at positions from 0: a cached
    key depends on its position and cannot be moved. Windows that slide are read again
    when the longest is full; else it goes on until the shortest is.
    """
    most, half = self._context_length, (self._context_length + 1) // 2
    self._texts = [text if len(text) < most else text[-half:] for text in self._texts]
    padded, padding = pad_left(self._texts, most)
    lengths = [
      len(text) for text, end in zip(self._texts, self.ended, strict=True) if not end
    ]
    return padded, padding, most - (max(lengths) if self._slides else min(lengths))

  def append(self, made: np.ndarray) -> list[list[int]]:
    """Takes int [B, N], -1 after a row has ended; the new tokens of each row."""
    new = [[token for token in row if token >= 0] for row in made.tolist()]
    for text, tokens in zip(self._texts, new, strict=True):
      text.extend(tokens)
    self.ended = [
      text[-1] in self._stop_ids
      or (len(text) >= self._context_length and not self._slides)
      for text in self._texts
    ]
    return new
