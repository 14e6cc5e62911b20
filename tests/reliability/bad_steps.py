"""Bad losses and gradients are put into a run, which must not learn from them."""

import contextlib
import io
import itertools
import pathlib
import random
import re
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np

from configs import toy
from gpt2_flax.errors import RunError
from gpt2_flax.training import loop, run
from gpt2_flax.training import step as step_lib
from gpt2_flax.training.experiment import parse
from gpt2_flax.training.loss import summed_loss
from tests.reliability.campaign import Tally
from tests.reliability.runs import checkpoint_steps, digest, records

NUM_STEPS, MAX_LOSS_JUMP = 12, 1.0
# What is put into a step, and how the run must name it. A batch is marked by its first
# target: below 0 none counts, so the mark changes only what `_spoilt_loss` makes of it.
KINDS = {
  "nan in the loss": (-2, "the loss is nan and its gradient's norm [0-9]"),
  "inf in the loss": (-3, "the loss is inf and its gradient's norm [0-9]"),
  "nan in the gradient": (-4, "the loss is [0-9.]+ and its gradient's norm nan"),
  "inf in the gradient": (-5, "the loss is [0-9.]+ and its gradient's norm inf"),
  "a spike": (-6, ".* after a mean loss of [34]"),
  "all masked": (-1, "the loss is nan .* no target that counts"),
}


def bad_steps(folder: pathlib.Path, chance: random.Random, full: bool) -> Tally:
  """Row 10: some of each kind, in runs that may leave out all, or all but one."""
  tally, put_in = Tally(), 0
  for number in range(40 if full else 1):
    kinds = (
      [*KINDS] if number == 0 else chance.choices([*KINDS], k=chance.randint(1, 9))
    )
    steps = sorted(chance.sample(range(2, NUM_STEPS), len(kinds)))
    chance.shuffle(kinds)
    bad = dict(zip(steps, kinds, strict=True))
    put_in += len(bad)
    with tally.attempt(f"run {number}, {bad}"):
      _leaves_out(folder / f"run{number}", bad)
      _stops_and_goes_on(folder / f"stopped{number}", bad)
      expected, found = (folder / f"{name}{number}" for name in ("run", "stopped"))
      assert digest(found) == digest(expected), "it ends in another state"
      assert _measured(found) == _measured(expected), "it has other metrics"
  tally.measured = f"{put_in} bad steps of {len(KINDS)} kinds"
  return tally


def _leaves_out(workdir: pathlib.Path, bad: dict[int, str]) -> None:
  """Up to its end: no bad step changes what is learned, each is named."""
  states, said, ended = _train(workdir, bad, len(bad), save_every=NUM_STEPS)
  assert not ended, ended
  for step, (before, after) in enumerate(itertools.pairwise(states), 2):
    what = f"step {step}, {bad.get(step, 'a good one')}:"
    assert after.step == step, f"{what} was not counted"
    skipped = sum(other <= step for other in bad)
    assert after.skipped == skipped, f"{what} {after.skipped} left out, not {skipped}"
    same = before.replace(step=after.step, skipped=after.skipped)
    if step in bad:
      chex.assert_trees_all_equal(after, same)
    else:
      changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), after, same)
      assert jax.tree.all(changed.params), f"{what} changed nothing"
  assert len(states) == NUM_STEPS
  lines = [line for line in said.splitlines() if "left out" in line]
  assert len(lines) == len(bad), said
  for line, (number, (step, kind)) in zip(
    lines, enumerate(bad.items(), 1), strict=True
  ):
    assert re.match(KINDS[kind][1], line), f"step {step}, {kind}: {line}"
    assert f" at step {step}" in line, f"step {step}, {kind}: {line}"
    assert line.endswith(f"left out, {number} of at most {len(bad)}"), line
  counts = {
    r["step"]: r["train/skipped"] for r in records(workdir) if "train/skipped" in r
  }
  for number, step in enumerate(bad, 1):
    assert counts[step] == number, f"step {step} is not in metrics.jsonl: {counts}"


def _stops_and_goes_on(workdir: pathlib.Path, bad: dict[int, str]) -> None:
  """One too many, which stops it before it is saved; then it is allowed."""
  last = max(bad)
  _, _, ended = _train(workdir, bad, len(bad) - 1, save_every=1)
  expected = f" at step {last}.*; last good checkpoint: step {last - 1}$"
  assert re.search(expected, ended), ended or f"it went on after step {last}"
  saved = checkpoint_steps(workdir)[-1]
  assert saved == last - 1, f"step {saved} is saved, and step {last} stopped it"
  _, _, ended = _train(workdir, bad, len(bad), save_every=1)
  assert not ended, ended


def _measured(workdir: pathlib.Path) -> list[dict]:
  """All records, without what depends on the clock."""
  return [
    {name: v for name, v in record.items() if name == "step" or "/" in name}
    for record in records(workdir)
  ]


def _train(
  workdir: pathlib.Path, bad: dict[int, str], max_skipped_steps: int, save_every: int
):
  """The state after each step, what was said, and the error that ended it, or ""."""
  values = toy.get_config()
  values.model.update(num_layers=1, num_heads=2, embed_dim=16, context_length=12)
  values.model.dropout_rate = 0.1
  values.optimizer.update(name="adamw", learning_rate=0.002, warmup_steps=1)
  values.train.update(num_steps=NUM_STEPS, batch_size=8, accumulation_steps=2)
  values.train.update(max_skipped_steps=max_skipped_steps, log_every_steps=5)
  values.train.max_loss_jump = MAX_LOSS_JUMP
  values.eval.update(every_steps=NUM_STEPS, num_windows=8, sample_tokens=0)
  values.checkpoint.every_steps = save_every
  config, dataset = parse(values)
  states, said, ended = [], io.StringIO(), ""

  def make_watched_step(*args):
    *others, _, tuning = args  # without the loss
    train_step = step_lib.make_train_step(*others, _spoilt_loss, tuning)

    def watched(state, batch):
      state, metrics = train_step(state, batch)
      states.append(jax.device_get(state.replace(rng=jax.random.key_data(state.rng))))
      return state, metrics

    return watched

  def marked_batches(*args):
    return _Marked(train_batches(*args), bad)

  train_batches = run.train_batches
  with (
    mock.patch.object(loop, "make_train_step", make_watched_step),
    mock.patch.object(run, "train_batches", marked_batches),
    contextlib.redirect_stdout(said),
    contextlib.redirect_stderr(said),
  ):
    try:
      loop.train(config, dataset, workdir)
    except RunError as error:
      ended = str(error)
  return states, said.getvalue(), ended


class _Marked:
  """Batches of which some are marked, wherever in the data one begins."""

  def __init__(self, batches, bad: dict[int, str]):
    self._batches, self._bad = batches, bad
    self.get_state, self.set_state = batches.get_state, batches.set_state

  def __next__(self):
    step = self._batches.get_state()["next_index"] + 1
    batch = next(self._batches)
    if step in self._bad:
      mark, _ = KINDS[self._bad[step]]
      targets = batch["targets"].copy()
      where = np.s_[:] if mark == -1 else np.s_[0, 0]
      targets[where] = mark
      batch = {**batch, "targets": targets}
    return batch


def _spoilt_loss(model, params, batch, *args):
  total, count = summed_loss(model, params, batch, *args)
  mark = batch["targets"][0, 0]

  def at(kind: str, value: float, otherwise: float = 0.0) -> jax.Array:
    return jnp.where(mark == KINDS[kind][0], value, otherwise)

  total += at("nan in the loss", jnp.nan) + at("inf in the loss", jnp.inf)
  slope = at("nan in the gradient", jnp.nan) + at("inf in the gradient", jnp.inf)
  total += _steep(jax.tree.leaves(params)[0].sum(), slope)
  return total * at("a spike", 20.0, 1.0), count


@jax.custom_vjp
def _steep(x: jax.Array, slope: jax.Array) -> jax.Array:
  """0, whatever x is, and yet with this slope."""
  return jnp.zeros_like(x)


_steep.defvjp(
  lambda x, slope: (_steep(x, slope), slope), lambda slope, g: (slope * g, 0.0)
)
