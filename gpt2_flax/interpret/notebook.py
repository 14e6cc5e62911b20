"""What a notebook shows as the value of a cell: the page of a model, pictures of heads.

Jupyter, Colab and VS Code ask a value for `_repr_html_` or `_repr_png_`. Nothing of
theirs is imported here.
"""

from collections.abc import Sequence
import dataclasses
import html
import io
import math
from typing import Any

import jax
import numpy as np

from gpt2_flax.datasets import Dataset
from gpt2_flax.errors import InputError
from gpt2_flax.terminal import one_line
from gpt2_flax.tokenizer import Tokenizer
from gpt2_flax.transformer import num_params

CELL_INCHES = 0.25  # side of a weight's square in a picture, if there is room
LEAST_INCHES, MOST_INCHES = 2.0, 13.0  # width of a head, and of all together
LABEL_INCHES = 0.15  # what a token's name needs


@dataclasses.dataclass(frozen=True, repr=False)
class Page:
  """A page of HTML in a frame of its own.

  Attributes:
    html: the whole page; written to a file, a browser opens it.
  """

  html: str

  def __repr__(self) -> str:
    return f"Page of {len(self.html) / 1e6:.1f} MB"

  def _repr_html_(self) -> str:
    # The sandbox lets the page run its script, and keeps it out of the notebook.
    return (
      '<iframe sandbox="allow-scripts" style="width: 100%; height: 800px; border: 0"'
      f' srcdoc="{html.escape(self.html)}"></iframe>'
    )


@dataclasses.dataclass(frozen=True)
class Picture:
  """A figure of matplotlib that a notebook shows by itself.

  Attributes:
    figure: `picture.figure.savefig("heads.png")` writes it.
  """

  figure: Any

  def _repr_png_(self) -> bytes:
    content = io.BytesIO()
    self.figure.savefig(content, format="png", bbox_inches="tight")
    return content.getvalue()


def show(
  model: Any,
  params: Any,
  text: str | Sequence[int],
  tokenizer: Tokenizer,
  dataset: Dataset | None = None,
) -> Page:
  """The model at work on a text, step by step: the page that explain.py writes.

  Args:
    model: a GPT2, or what `edited` returns.
    params: of the model.
    text: what it reads; or token ids, the start token among them where there is one.
    dataset: what it was trained on, for the true distribution of the next token, and
      for where heads look on validation data.

  Raises:
    InputError: a word that the tokenizer does not know, an id that the model does not.
  """
  from gpt2_flax.interpret.page import page_data, render_page  # slow to import

  tokens = np.asarray(tokenizer.start(text) if isinstance(text, str) else text)
  vocab_size = model.config.vocab_size
  if tokens.ndim != 1 or not ((tokens >= 0) & (tokens < vocab_size)).all():
    raise InputError(
      f"tokens are {tokens}: must be one row of ids, each from 0 to {vocab_size - 1}"
    )
  title = f"a GPT-2 of {num_params(params):,} parameters"
  data = page_data(
    model, params, tokenizer, tokens.tolist(), title=title, dataset=dataset
  )
  return Page(render_page(data, model.config))


def plot_attention(
  weights: jax.typing.ArrayLike, tokens: Sequence[str] | None = None
) -> Picture:
  """Where heads look: a square for each head, a row in it for each token that looks.

  Args:
    weights: [..., B, T, S] as a `Trace` has them: of a model [L, H, B, T, S], of a
      layer [H, B, T, S], of a head [B, T, S]; or of one text alone, [T, S]. Of several
      texts the first is shown.
    tokens: their names. Then T and S are their number.

  Raises:
    InputError: an array of another shape, or another number of names.
  """
  import matplotlib  # slow to import
  from matplotlib.figure import Figure

  array = np.asarray(weights, np.float32)
  if not 2 <= array.ndim <= 5 or 0 in array.shape:
    raise InputError(
      f"weights have shape {array.shape}: must be [T, S], [B, T, S], [H, B, T, S] or"
      " [L, H, B, T, S]"
    )
  num_queries, num_keys = array.shape[-2:]
  if tokens is not None and not len(tokens) == num_queries == num_keys:
    raise InputError(
      f"there are {len(tokens)} names of tokens: must be {num_queries} for those that"
      f" look and {num_keys} for those that are looked at"
    )
  first = array[..., 0, :, :] if array.ndim > 2 else array
  heads_LHTS = first.reshape((1,) * (4 - first.ndim) + first.shape)
  # one image of all heads, with a line between them: an axes for each takes minutes
  apart = np.pad(heads_LHTS, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
  num_layers, num_heads = heads_LHTS.shape[:2]
  size = num_layers * (num_queries + 1) - 1, num_heads * (num_keys + 1) - 1
  tiled = apart.swapaxes(1, 2).reshape(size[0] + 1, size[1] + 1)[:-1, :-1]

  inches = min(max(CELL_INCHES, LEAST_INCHES / num_keys), MOST_INCHES / size[1])
  figure = Figure(
    figsize=(inches * size[1] + 2, inches * size[0] + 1.5),
    layout="constrained",
    dpi=110,
  )
  axes = figure.subplots()
  colours = matplotlib.colormaps["Blues"].with_extremes(bad="0.85")
  image = axes.imshow(tiled, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
  every = math.ceil(LABEL_INCHES / inches)
  names = range(num_keys) if tokens is None else list(map(_label, tokens))
  for axis, num_tiles, length in (
    (axes.yaxis, num_layers, num_queries),
    (axes.xaxis, num_heads, num_keys),
  ):
    shown = range(0, length, every)
    places = [tile * (length + 1) + i for tile in range(num_tiles) for i in shown]
    axis.set_ticks(places, [names[i] for i in shown] * num_tiles)
  axes.tick_params(labelsize=8, length=0)
  axes.tick_params("x", rotation=90)
  axes.set_ylabel("token that looks")
  axes.set_xlabel("token that is looked at")
  if array.ndim > 3:
    _name_tiles(axes.secondary_xaxis("top").xaxis, "head", num_heads, num_keys)
  if array.ndim > 4:
    _name_tiles(axes.secondary_yaxis("right").yaxis, "layer", num_layers, num_queries)
  axes.spines[:].set_color("0.85")
  figure.colorbar(image, label="weight", shrink=0.6)
  return Picture(figure)


def _name_tiles(axis: Any, what: str, num_tiles: int, length: int) -> None:
  middles = [tile * (length + 1) + (length - 1) / 2 for tile in range(num_tiles)]
  axis.set_ticks(middles, [f"{what} {tile}" for tile in range(num_tiles)])
  axis.set_tick_params(labelsize=8, length=0)


def _label(token: str) -> str:
  """A token's name as matplotlib shows it: on one line, and no formula."""
  return one_line(token).replace("$", r"\$")
