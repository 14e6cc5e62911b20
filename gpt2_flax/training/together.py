"""Many runs as one program: a training step under `jax.vmap`.

A run is a function of its seed and its hyperparameters, so they may be one more axis of
every array: M members, [M, ...]. All is compiled once, and small models keep a large
device busy. Each member has a folder of its own, as if `loop.train` had made it.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import json
import math
import os
import signal
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from gpt2_flax.datasets import Dataset
from gpt2_flax.datasets.dataset import Batch
from gpt2_flax.training.bad_steps import DivergedError
from gpt2_flax.training.config import ExperimentConfig
from gpt2_flax.training.evaluation import Evaluator
from gpt2_flax.training.mesh import batch_sharding, one_device_mesh
from gpt2_flax.training.optimizer import learning_rate_schedule, make_optimizer
from gpt2_flax.training.progress import Progress
from gpt2_flax.training.run import Result, Run
from gpt2_flax.training.signals import StopSignals
from gpt2_flax.training.step import (
  abstract_state,
  init_state,
  pure_train_step,
  shardings,
  TrainState,
)
from gpt2_flax.transformer import GPT2

# What members of one program may differ in, besides the seeds of weights and of data.
NUMBERS = ("learning_rate", "weight_decay", "beta1", "beta2", "max_grad_norm")

Ended = Result | DivergedError


def program(config: ExperimentConfig) -> str | None:
  """Equal for configs whose runs may share a program; None: it needs one of its own."""
  if config.init_from or config.model.scan_layers:
    return None  # members begin with random weights, their layers apart
  values = config.to_dict()
  for name in NUMBERS:
    del values["optimizer"][name]
  del values["train"]["seed"]
  values["data"].pop("seed", None)
  return json.dumps(values, sort_keys=True)


def train_together(
  configs: Sequence[ExperimentConfig],
  datasets: Sequence[Dataset],
  workdirs: Sequence[str | os.PathLike],
  on_end: Callable[[int, Ended], None],
  progress: Sequence[Callable[..., Progress]],
) -> signal.Signals | None:
  """Trains all members from where their folders stand to the last step.

  A member equals the same run alone up to rounding. One that diverges is told of at
  once, stays as it is, and the others go on. Members are shared out over as many
  devices as can have equal shares.

  Args:
    configs: of one `program`; config.mesh and config.profile are not used.
    on_end: called with the number of a member, and its result or why it diverged.
    progress: of each member: see `loop.train`.

  Returns:
    The signal that ended it early, or None.

  Raises:
    InputError: a config does not fit its folder.
    RunError: a folder cannot be read or written.
  """
  first = configs[0]
  assert {program(config) for config in configs} == {program(first)} != {None}
  model, num_steps = GPT2(first.model.plain), first.train.num_steps
  devices = jax.devices()[: math.gcd(len(configs), jax.device_count())]
  by_member = NamedSharding(
    Mesh(np.array(devices), "members"), PartitionSpec("members")
  )
  one_device = one_device_mesh()

  def rule(numbers: dict[str, Any]) -> tuple[Any, Any]:
    config = dataclasses.replace(first.optimizer, **numbers)
    schedule = learning_rate_schedule(config, num_steps)
    return make_optimizer(config, schedule), schedule

  def train_step(numbers: dict[str, Any], state: TrainState, batch: Batch) -> Any:
    settings = first.train.accumulation_steps, first.train.max_loss_jump
    return pure_train_step(model, *rule(numbers), one_device, *settings)(state, batch)

  step_all = jax.jit(
    jax.vmap(train_step), donate_argnums=1, out_shardings=(by_member, None)
  )
  stack_all = jax.jit(
    lambda states: jax.tree.map(lambda *leaves: jnp.stack(leaves), *states),
    out_shardings=by_member,
  )
  take = jax.jit(lambda states, i: jax.tree.map(lambda x: x[i], states))
  values = [[getattr(config.optimizer, name) for config in configs] for name in NUMBERS]
  numbers = dict(zip(NUMBERS, np.array(values, np.float32), strict=True))
  numbers = jax.device_put(numbers, by_member)
  optimizer, _ = rule({})
  abstract = abstract_state(model, optimizer, one_device)

  with contextlib.ExitStack() as stack:
    # --- Where to begin ----------------------------------------------------------
    stop = stack.enter_context(StopSignals())
    sharding = batch_sharding(one_device)
    evaluators = {
      id(dataset): Evaluator(model, dataset, config, sharding)
      for dataset, config in zip(datasets, configs, strict=True)
    }
    runs = [
      stack.enter_context(
        Run(
          config,
          dataset,
          workdir,
          model,
          evaluators[id(dataset)],
          sharding,
          progress=progress_of_one,
        )
      )
      for config, dataset, workdir, progress_of_one in zip(
        configs, datasets, workdirs, progress, strict=True
      )
    ]
    members = _Members(runs, on_end)
    restored = _restore(runs, abstract)
    states = restored or [
      init_state(model, optimizer, jax.random.key(config.train.seed), abstract)
      for config in configs
    ]
    about = f"one of {len(runs)} in a program on {len(devices)} device(s)"
    step = 0  # the same of all
    for run, state in zip(runs, states, strict=True):
      step = run.begin(state, not restored, about)
    stacked = stack_all(states)
    placed = shardings(abstract)

    def each() -> list[TrainState]:
      """The members' states, each as a run alone would have it."""
      one_by_one = [take(stacked, jax.device_put(i)) for i in range(len(runs))]
      return jax.device_put(one_by_one, [placed] * len(runs))

    # --- The loop ----------------------------------------------------------------
    stack.enter_context(jax.transfer_guard("disallow"))
    while step < num_steps and not stop.agreed() and not members.all_diverged:
      batches, waits = zip(*(run.next_batch() for run in runs), strict=True)
      batch = jax.tree.map(lambda *rows: np.stack(rows), *batches)
      stacked, metrics = step_all(numbers, stacked, jax.device_put(batch, by_member))
      step += 1
      members.stepped(step, metrics, sum(waits))
      if runs[0].has_work(step):
        members.tend(step, each())

    # --- The end -----------------------------------------------------------------
    members.finish(step, each(), stop.agreed_on)
    return stop.agreed_on if step < num_steps else None


def _restore(runs: Sequence[Run], abstract: TrainState) -> list[TrainState] | None:
  """The newest states of one and the same step; None: all begin anew.

  A kill between two saves leaves some members a checkpoint ahead, which is dropped.
  """
  while True:
    states = [run.restore(abstract) for run in runs]
    steps = [0 if state is None else int(state.step) for state in states]
    found = [state for state in states if state is not None]
    if min(steps) == max(steps):
      return found or None
    for run in runs:
      run.checkpoints.drop_after(min(steps))


class _Members:
  """The runs of one program: what is done for each, and which have diverged."""

  def __init__(self, runs: Sequence[Run], on_end: Callable[[int, Ended], None]):
    self._runs, self._on_end = runs, on_end
    self._diverged: set[int] = set()
    self._pending: tuple[int, dict[str, jax.Array], float] | None = None

  @property
  def all_diverged(self) -> bool:
    return len(self._diverged) == len(self._runs)

  def stepped(self, step: int, metrics: dict[str, jax.Array], waited: float) -> None:
    """Takes a step's metrics, [M] each, on the device; reports the step before."""
    before, self._pending = self._pending, (step, metrics, waited)
    self._report(before)

  def tend(self, step: int, states: Sequence[TrainState]) -> None:
    """`Run.tend` of each; one that has diverged is only saved, to be at this step."""
    self._flush()
    for i, (run, state) in enumerate(zip(self._runs, states, strict=True)):
      with self._ending(i):
        if i not in self._diverged:
          run.tend(step, state)
      if i in self._diverged:
        run.save_if_due(step, state)

  def finish(
    self, step: int, states: Sequence[TrainState], stopped_by: signal.Signals | None
  ) -> None:
    """`Run.finish` of each that has not diverged."""
    self._flush()
    for i, (run, state) in enumerate(zip(self._runs, states, strict=True)):
      with self._ending(i):
        if i not in self._diverged:
          self._on_end(i, run.finish(step, state, stopped_by))

  def _flush(self) -> None:
    before, self._pending = self._pending, None
    self._report(before)

  def _report(self, pending: tuple[int, dict[str, jax.Array], float] | None) -> None:
    if pending is None:
      return
    step, metrics, waited = pending
    on_host = jax.device_get(metrics)
    for i, run in enumerate(self._runs):
      with self._ending(i):
        if i not in self._diverged:
          of_one = {name: values[i] for name, values in on_host.items()}
          run.stepped(step, of_one, waited)

  @contextlib.contextmanager
  def _ending(self, i: int) -> Any:
    try:
      yield
    except DivergedError as error:
      self._diverged.add(i)
      self._on_end(i, error)
