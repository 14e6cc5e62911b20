"""Which activations carry what another text would have changed: patches, one by one.

Two texts differ in one thing. The model reads one of them; at one place it is given
what it computed on the other, and the metric says how much of the difference came in
there. Each function makes a whole sweep of such patches, ready to plot:

    _, source = trace(model, params, others_BT)
    change_LT = activation_patching(model, params, tokens_BT, source, metric)
    change_LH = activation_patching(
      model, params, tokens_BT, source, metric, "head_output", "LH"
    )

A metric takes logits, float32 [B, T, V], and returns a scalar, such as the difference
of two tokens' logits at the last position. It is known by its identity, so define it
once: a new one compiles anew.

Axes: those of `sites.TAPS`.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from gpt2_flax.errors import InputError, unknown_name
from gpt2_flax.interpret import sites
from gpt2_flax.interpret.edits import make_edit, patch
from gpt2_flax.interpret.residual import require_taps
from gpt2_flax.interpret.sites import TAPS
from gpt2_flax.interpret.trace import Trace, trace

Metric = Callable[[jax.Array], jax.Array]

RECEIVING = ("query", "key", "value")


@functools.partial(
  jax.jit, static_argnames=("model", "metric", "site", "over", "at_once")
)
def activation_patching(
  model: Any,
  params: Any,
  tokens_BT: jax.typing.ArrayLike,
  source: Trace,
  metric: Metric,
  site: str = "residual_before",
  over: str = "LT",
  *,
  at_once: int | None = None,
) -> jax.Array:
  """What the metric changes by when one place is given another run's value.

  It shows where information passes, not what is done with it there. Small changes do
  not show that a place is unused: another may do the same.

  Source: Meng et al. (2022), "Locating and Editing Factual Associations in GPT",
  section 2.1; Vig et al. (2020), section 3. What to mind: Heimersheim & Nanda (2024),
  "How to use and interpret activation patching".

  Args:
    model: a GPT2, or what `edited` returns.
    tokens_BT: int, what the model reads.
    source: of the other run, with the site; as many texts and tokens as here.
    metric: of the logits.
    site: a name of TAPS.
    over: the axes of the site along which a place is one index; along all others it is
      everything. "LT" patches a layer at a position, "LH" a head at all positions.
    at_once: how many patches are run together; fewer take less memory. None for all.

  Returns:
    float32, with the axes of `over`, in this order: the metric with the patch minus the
    metric without.

  Raises:
    InputError: the site has no such axis, or the source does not fit.
  """
  sizes = _sizes(source, site, over)
  number = math.prod(sizes)

  def patched(index: jax.Array) -> jax.Array:
    chosen = (jnp.arange(number) == index).reshape(sizes)
    edit = patch(site, source[site], _with_axes(chosen, over, TAPS[site]))
    return metric(trace(model, params, tokens_BT, [edit], ())[0])

  unpatched = metric(trace(model, params, tokens_BT, taps=())[0])
  changed = jax.lax.map(
    patched, jnp.arange(number), batch_size=_at_once(at_once, number)
  )
  return changed.reshape(sizes) - unpatched


@functools.partial(jax.jit, static_argnames=("model", "metric", "site", "over"))
def attribution_patching(
  model: Any,
  params: Any,
  tokens_BT: jax.typing.ArrayLike,
  source: Trace,
  metric: Metric,
  site: str = "residual_before",
  over: str = "LT",
) -> jax.Array:
  """`activation_patching` to first order: one backward pass for the whole sweep.

  The metric's gradient in the values of this run, times what the other run's differ by.
  It does not show what bends on the way: large differences, as of the residual stream
  in early layers, and softmaxes that are all but certain are where it misleads.
  So set the two side by side once, `jnp.corrcoef(exact.ravel(), estimate.ravel())`.

  Source: Nanda (2023), "Attribution Patching: Activation Patching At Industrial Scale";
  Syed et al. (2023), "Attribution Patching Outperforms Automated Circuit Discovery",
  section 3.

  Args, Returns, Raises: as `activation_patching`.
  """
  _sizes(source, site, over)
  here = trace(model, params, tokens_BT, taps=[site])[1][site]

  def with_added(value: jax.Array) -> jax.Array:
    edit = make_edit(site, True, 1.0, value)
    return metric(trace(model, params, tokens_BT, [edit], ())[0])

  if source[site].shape != here.shape:
    raise InputError(
      f"the source's {site!r} has shape {source[site].shape}: must be {here.shape}"
    )
  gradient = jax.grad(with_added)(jnp.zeros(here.shape))
  effects = gradient * (source[site].astype(jnp.float32) - here.astype(jnp.float32))
  return jnp.einsum(f"{TAPS[site]}->{over}", effects)


@functools.partial(
  jax.jit, static_argnames=("model", "metric", "to", "through_mlps", "at_once")
)
def path_patching(
  model: Any,
  params: Any,
  tokens_BT: jax.typing.ArrayLike,
  source: Trace,
  metric: Metric,
  receivers_LH: jax.typing.ArrayLike,
  to: str = "query",
  *,
  through_mlps: bool = False,
  at_once: int | None = None,
) -> jax.Array:
  """What each head tells receiving heads directly, by what the metric changes by.

  A sender says what it said in the other run. What every other head says stays as it is
  in this run, and so does every feed-forward; so the change comes to the receivers
  along the residual stream alone. There it changes their query, key or value, and all
  else about them and after them is then computed as usual.

  For each sender and each receiver by itself: `jax.vmap` over one-hot `receivers_LH`.

  It does not show a path that goes through a third head. A small change does not show
  that the receiver does not listen: the metric may not ask for what it makes of it.

  Source: Goldowsky-Dill et al. (2023), "Localizing Model Behavior with Path Patching";
  Wang et al. (2022), "Interpretability in the Wild", section 3.1 and appendix B, who
  let the feed-forwards in between be computed anew, as `through_mlps` does.

  Args:
    model, tokens_BT, metric, at_once: as in `activation_patching`.
    source: of the other run, with head_output.
    receivers_LH: bool, True for the heads that listen.
    to: what of theirs: "query", "key" or "value".
    through_mlps: whether the paths may lead through feed-forwards.

  Returns:
    float32 [L, H], by sender: the metric with the path patched minus the metric
    without. Zero for heads that are not before a receiver.

  Raises:
    InputError: `to` is none of those, or the source does not fit.
  """
  if to not in RECEIVING:
    raise unknown_name("part of a receiver", to, RECEIVING)
  sizes = _sizes(source, "head_output", "LH")
  number = math.prod(sizes)
  frozen = ["head_output"]
  if model.config.feed_forward and not through_mlps:
    frozen.append("mlp_output")
  logits_BTV, here = trace(model, params, tokens_BT, taps=frozen)
  freeze = [patch(tap, here[tap]) for tap in frozen]

  def patched(index: jax.Array) -> jax.Array:
    sender_LH = (jnp.arange(number) == index).reshape(sizes)
    send = patch("head_output", source.head_output, sender_LH)
    received = trace(model, params, tokens_BT, [*freeze, send], [to])[1][to]
    receive = patch(to, received, receivers_LH)
    return metric(trace(model, params, tokens_BT, [receive], ())[0])

  changed = jax.lax.map(
    patched, jnp.arange(number), batch_size=_at_once(at_once, number)
  )
  return changed.reshape(sizes) - metric(logits_BTV)


def _sizes(source: Trace, site: str, over: str) -> tuple[int, ...]:
  """Of the axes `over`, in the source, which has the site."""
  sites.check_site(site)
  if not over or len(set(over)) < len(over) or set(over) - set(TAPS[site]):
    raise InputError(
      f"over is {over!r}: must be axes of {site!r}, each once: {TAPS[site]}"
    )
  require_taps(source, site)
  return tuple(source[site].shape[TAPS[site].index(axis)] for axis in over)


def _with_axes(array: jax.Array, axes: str, wanted: str) -> jax.Array:
  """Its axes in another order, and of size 1 where it has none."""
  array = jnp.einsum(f"{axes}->{''.join(a for a in wanted if a in axes)}", array)
  return jnp.expand_dims(array, [i for i, a in enumerate(wanted) if a not in axes])


def _at_once(at_once: int | None, number: int) -> int:
  if at_once is not None and at_once < 1:
    raise InputError(f"at_once is {at_once}: must be at least 1")
  return min(at_once or number, number)
