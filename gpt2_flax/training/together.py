"""Many runs as one program: a training step under `jax.vmap`.

A run is a function of its seed and its hyperparameters, so they may be one more axis of
every array: M members, [M, ...]. All is compiled once, and small models keep a large
device busy. Each member has a folder of its own, as if `loop.train` had made it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
from gpt2_flax.training.config import ExperimentConfig, FinetuneConfig
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
NUMBERS = ("learning_rate", "weight_decay", "max_grad_norm")

Ended = Result | DivergedError


def program(config: ExperimentConfig) -> str | None:
  """Equal for configs whose runs may share a program; None: it needs one of its own."""
  if config.init_from or config.model.scan_layers:
    return None  # members begin with random weights, their layers apart
  if config.finetune != FinetuneConfig():
    return None  # members learn everything
  if config.mesh.fsdp > 1 or config.mesh.tensor > 1:
    return None  # a model that is split over devices; members have one each
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
  diverged: Collection[int] = (),
) -> signal.Signals | None:
  """Trains all members from where their folders stand to the last step.

  A member equals the same run alone up to rounding. One that diverges is told of at
  once, stays as it is, and the others go on. Members are shared out over as many
  devices as can have equal shares.

  Args:
    configs: of one `program`; config.mesh and config.profile are not used.
    on_end: called with the number of a member, and its result or why it diverged.
    progress: of each member: see `loop.train`.
    diverged: numbers of members that did so before an interruption. They keep their
      places in the program, so that it is the same, with the others' bits.

  Returns:
    The signal that asked it to stop, perhaps too late, or None.

  Raises:
    InputError: a config does not fit its folder.
    RunError: a folder cannot be read or written.
  """
  first = configs[0]
  assert {program(config) for config in configs} == {program(first)} != {None}
  model, num_steps = GPT2(first.model.plain), first.train.num_steps
  devices = jax.devices()[: math.gcd(len(configs), jax.device_count())]
  mesh = Mesh(np.array(devices), "members")
  by_member = NamedSharding(mesh, PartitionSpec("members"))
  on_all = NamedSharding(mesh, PartitionSpec())
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
    lambda states: jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
  )
  take = jax.jit(lambda states, i: jax.tree.map(lambda x: x[i], states))
  numbers = jax.device_put(_numbers(configs), by_member)
  optimizer, _ = rule({})
  abstract = abstract_state(model, optimizer, one_device)

  with contextlib.ExitStack() as stack:
    # --- Where to begin ----------------------------------------------------------
    stop = stack.enter_context(StopSignals())
    sharding = batch_sharding(one_device)
    evaluators = {
      id(dataset): Evaluator(model, dataset, first, sharding) for dataset in datasets
    }
    runs = {
      i: stack.enter_context(
        Run(
          configs[i],
          datasets[i],
          workdirs[i],
          model,
          evaluators[id(datasets[i])],
          sharding,
          progress=progress[i],
        )
      )
      for i in range(len(configs))
      if i not in diverged
    }
    members = _Members(runs, on_end)
    restored = _restore(runs, abstract)
    states = restored or {
      i: init_state(model, optimizer, jax.random.key(configs[i].train.seed), abstract)
      for i in runs
    }
    about = f"one of {len(configs)} in a program on {len(devices)} device(s)"
    step = 0  # the same of all
    for i, run in runs.items():
      step = run.begin(states[i], not restored, about)
    # whose state and batches are at each place: any will do where one has diverged
    places = [i if i in runs else min(runs) for i in range(len(configs))]
    stacked = jax.device_put(stack_all([states[i] for i in places]), by_member)
    placed = shardings(abstract)

    def each() -> dict[int, TrainState]:
      """The members' states, each as a run alone would have it."""
      one_by_one = {i: take(stacked, jax.device_put(i, on_all)) for i in runs}
      return jax.device_put(one_by_one, dict.fromkeys(runs, placed))

    # --- The loop ----------------------------------------------------------------
    stack.enter_context(jax.transfer_guard("disallow"))
    while step < num_steps and not stop.agreed() and not members.all_diverged:
      batches = {i: run.next_batch() for i, run in runs.items()}
      rows = [batches[i][0] for i in places]
      waited = sum(seconds for _, seconds in batches.values())
      batch = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
      stacked, metrics = step_all(numbers, stacked, jax.device_put(batch, by_member))
      step += 1
      members.stepped(step, metrics, waited)
      if members.have_work(step):
        members.tend(step, each())

    # --- The end -----------------------------------------------------------------
    members.finish(step, each(), stop)
    return stop.received


def _numbers(configs: Sequence[ExperimentConfig]) -> dict[str, np.ndarray]:
  """Those that are not the same of all members, [M] each.

  The others stay in the program: 1 - 0.999 has more digits there than in float32.
  """
  found = {}
  for name in NUMBERS:
    values = [getattr(config.optimizer, name) for config in configs]
    if len(set(values)) > 1:
      found[name] = np.array(values, np.float32)
  return found


def _restore(
  runs: Mapping[int, Run], abstract: TrainState
) -> dict[int, TrainState] | None:
  """The newest states of one and the same step; None: all begin anew.

  A kill between two saves leaves some members a checkpoint ahead, which is dropped.
  """
  while True:
    states = {i: run.restore(abstract) for i, run in runs.items()}
    found = {i: state for i, state in states.items() if state is not None}
    steps = {int(state.step) for state in found.values()}
    if len(found) < len(runs):
      steps.add(0)
    if len(steps) == 1:
      return found or None
    for run in runs.values():
      run.checkpoints.drop_after(min(steps))


class _Members:
  """The runs of one program: what is done for each, and which have diverged."""

  def __init__(self, runs: Mapping[int, Run], on_end: Callable[[int, Ended], None]):
    self._runs, self._on_end = runs, on_end
    self._diverged: set[int] = set()
    self._pending: tuple[int, dict[str, jax.Array], float] | None = None

  @property
  def all_diverged(self) -> bool:
    return len(self._diverged) == len(self._runs)

  def have_work(self, step: int) -> bool:
    """Whether `tend` has anything to do after this step, the same for all."""
    return next(iter(self._runs.values())).has_work(step)

  def stepped(self, step: int, metrics: dict[str, jax.Array], waited: float) -> None:
    """Takes a step's metrics, [M] each, on the device; reports the step before."""
    before, self._pending = self._pending, (step, metrics, waited)
    self._report(before)

  def tend(self, step: int, states: Mapping[int, TrainState]) -> None:
    """`Run.tend` of each that has not diverged."""
    self._catch_up()
    for i, run in self._runs.items():
      with self._ending(i):
        if i not in self._diverged:
          run.tend(step, states[i])

  def finish(
    self, step: int, states: Mapping[int, TrainState], stop: StopSignals
  ) -> None:
    """`Run.finish` of each that has not diverged."""
    self._catch_up()
    for i, run in self._runs.items():
      with self._ending(i):
        if i not in self._diverged:
          self._on_end(i, run.finish(step, states[i], stop))

  def _catch_up(self) -> None:
    """Reports all steps, and waits until all that was saved is on disk.

    So no member is ever more than one checkpoint ahead of another, which still has the
    one before; and none is said to be done before all others have its last step.
    """
    before, self._pending = self._pending, None
    self._report(before)
    for run in self._runs.values():
      run.checkpoints.wait()

  def _report(self, pending: tuple[int, dict[str, jax.Array], float] | None) -> None:
    if pending is None:
      return
    step, metrics, waited = pending
    on_host = jax.device_get(metrics)
    for i, run in self._runs.items():
      with self._ending(i):
        if i not in self._diverged:
          of_one = {name: values[i] for name, values in on_host.items()}
          run.stepped(step, of_one, waited)

  @contextlib.contextmanager
  def _ending(self, i: int) -> Iterator[None]:
    try:
      yield
    except DivergedError as error:
      self._diverged.add(i)
      self._on_end(i, error)
