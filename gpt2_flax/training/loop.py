"""The training loop: read it first, it names everything else."""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import os
import pathlib
import signal
import time
from typing import Any

import jax
import optax

from gpt2_flax.datasets import Dataset
from gpt2_flax.datasets.pipeline import train_batches
from gpt2_flax.layers.layer_stacking import stack_layers, unstack_layers
from gpt2_flax.registry import origin
from gpt2_flax.training import processes
from gpt2_flax.training.bad_steps import BadSteps
from gpt2_flax.training.checkpoints import Checkpoints
from gpt2_flax.training.config import ExperimentConfig
from gpt2_flax.training.evaluation import Evaluator
from gpt2_flax.training.loss import Loss, summed_loss
from gpt2_flax.training.mesh import (
  batch_sharding,
  held_rows,
  make_mesh,
  put_batch,
  spread_over,
)
from gpt2_flax.training.metrics import MetricsWriter, plot_loss, Write
from gpt2_flax.training.optimizer import learning_rate_schedule, make_optimizer
from gpt2_flax.training.profile import Profile
from gpt2_flax.training.progress import Progress
from gpt2_flax.training.report import checked_measures, Report
from gpt2_flax.training.signals import StopSignals
from gpt2_flax.training.source import load_params
from gpt2_flax.training.step import (
  abstract_state,
  init_state,
  make_train_step,
  shardings,
)
from gpt2_flax.training.throughput import Throughput
from gpt2_flax.training.workdir import locked, open_workdir
from gpt2_flax.transformer import GPT2, num_params

NUM_JUDGED_SAMPLES = 256


@dataclasses.dataclass(frozen=True)
class Result:
  """How a run ended.

  Attributes:
    step: the last step taken.
    metrics: the newest value under each name.
    stopped_by: the signal that ended it early, or None.
  """

  step: int
  metrics: dict[str, float | str]
  stopped_by: signal.Signals | None

  def summary(self, workdir: pathlib.Path) -> str:
    """A few lines for a person."""
    if self.stopped_by:
      return (
        f"\nstopped by {self.stopped_by.name} after step {self.step}; the same command"
        " goes on from there"
      )
    lines = [f"\ndone: {self.step} steps"]
    loss, floor = self.metrics["val/loss"], self.metrics.get("val/floor")
    if floor is None:
      lines.append(f"  validation loss {loss:.4f} nats per token")
      lines.append("  floor           unknown: nobody knows the process behind text")
    else:
      lines.append(f"  validation loss {loss:.4f} nats per token")
      lines.append(f"  floor           {floor:.4f} (no model can beat it)")
      lines.append(f"  gap             {self.metrics['val/gap']:.4f}")
    share = self.metrics.get("val/possible_share")
    if share is not None:
      lines.append(
        f"  samples         {share:.1%} of {NUM_JUDGED_SAMPLES} are possible in the"
        " language"
      )
    lines.append(f"  in {workdir}: loss.png, metrics.jsonl, tensorboard/, checkpoints/")
    return "\n".join(lines)


# (step, model, params) -> measures by name
OnEval = Callable[[int, GPT2, Any], Mapping[str, float]]


def train(
  config: ExperimentConfig,
  dataset: Dataset,
  workdir: str | os.PathLike,
  *,
  loss: Loss = summed_loss,
  optimizer: optax.GradientTransformation | None = None,
  on_eval: OnEval | None = None,
  write: Write | None = None,
) -> Result:
  """Trains from where the workdir stands to train.num_steps.

  What is yours is an argument: see docs/own_parts.md. A run that goes on must get the
  same loss and optimizer again.

  Args:
    loss: what is trained on, a pure function; by default the cross-entropy.
    optimizer: any of optax; None for the one that config.optimizer describes.
    on_eval: called at each evaluation, in every process. Its measures go to
      metrics.jsonl, TensorBoard and the progress bar. The model's layers are unstacked.
      The next step reuses the memory of the params: copy what you want to keep.
    write: called with each step that has metrics, and its metrics, in process 0. Steps
      after the last checkpoint come again when an interrupted run goes on.

  Raises:
    InputError: the config does not fit the devices or the workdir; or a measure of
      on_eval has a name that is taken.
    RunError: too many steps are bad, all checkpoints are damaged, or the disk is full.
  """
  # --- What does not change ------------------------------------------------------
  workdir = pathlib.Path(workdir)
  config = _with_own(config, loss, optimizer)
  mesh = make_mesh(config.mesh, config.train)
  sharding = batch_sharding(mesh)
  model = GPT2(config.model)
  num_steps = config.train.num_steps
  schedule = None
  if optimizer is None:
    schedule = learning_rate_schedule(config.optimizer, num_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
  abstract = abstract_state(model, optimizer, mesh)
  plain_model = GPT2(config.model.plain)  # initialised and saved so: layers unstacked
  plain_abstract = abstract_state(plain_model, optimizer, mesh)
  train_step = make_train_step(
    model,
    optimizer,
    schedule,
    abstract,
    config.train.accumulation_steps,
    config.train.max_loss_jump,
    loss,
  )
  evaluator = Evaluator(model, dataset, config, sharding, loss)
  batch_size = config.train.batch_size
  rows = held_rows(sharding, batch_size)  # those of each batch that this process reads
  batches = train_batches(dataset, batch_size, config.train.seed, rows)

  with contextlib.ExitStack() as stack:
    # --- Where to begin ----------------------------------------------------------
    stop = stack.enter_context(StopSignals())
    stack.enter_context(locked(workdir))
    open_workdir(workdir, config, dataset.tokenizer)
    checkpoints = stack.enter_context(
      Checkpoints(workdir / "checkpoints", config.checkpoint)
    )
    restored = checkpoints.restore(plain_abstract)
    if restored:
      state, data_position = restored
      batches.set_state(data_position)
    else:
      key = jax.random.key(config.train.seed)
      state = init_state(plain_model, optimizer, key, plain_abstract)
      if config.init_from:
        params = load_params(config.init_from, plain_abstract.params)
        state = state.replace(params=params)
    if config.model.scan_layers:
      state = jax.jit(stack_layers, out_shardings=shardings(abstract))(state)
    step = int(state.step)
    writer = MetricsWriter(workdir, start_step=step, write=write)
    progress = stack.enter_context(Progress(num_steps, start_step=step))
    progress.line(
      f"{num_params(abstract.params):,} parameters, {mesh.size} device(s) of"
      f" {jax.process_count()} process(es);"
      f" {'goes on from' if restored else 'starts at'} step {step} of {num_steps} in"
      f" {workdir}"
    )
    profile = stack.enter_context(Profile(config.profile, start_step=step))
    bad_steps = BadSteps(
      config.train.max_skipped_steps,
      num_seen=int(state.skipped),
      last_saved=step if restored else None,
    )
    throughput = Throughput(config.model, batch_size)
    report = Report(
      writer, progress, throughput, bad_steps, config.train.log_every_steps
    )

    def evaluate() -> None:
      report.flush()
      values = evaluator.losses(state.params)
      measures = {}
      if on_eval is not None:
        with jax.transfer_guard("allow"):
          measures = checked_measures(
            on_eval(step, plain_model, unstack_layers(state.params))
          )
      sample = evaluator.sample(state.params, seed=config.train.seed + step)
      report.evaluated(step, values, measures, sample)

    def save() -> None:
      report.flush()  # raises if this was one bad step too many
      checkpoints.save(unstack_layers(state), batches.get_state(), config.to_dict())
      bad_steps.last_saved = step

    def keep() -> None:
      if config.checkpoint.stays(step):
        checkpoints.keep(step, unstack_layers(state.params), config.to_dict())

    if not restored:
      keep()

    # --- The loop ----------------------------------------------------------------
    stack.enter_context(spread_over(mesh))
    # Arrays move between host and device only where the code says so.
    stack.enter_context(jax.transfer_guard("disallow"))
    while step < num_steps and not stop.agreed():
      waited = time.perf_counter()
      batch = next(batches)
      waited = time.perf_counter() - waited
      profile.before(step + 1)
      state, metrics = train_step(state, put_batch(batch, sharding, batch_size))
      step += 1
      profile.after(step, metrics)
      report.stepped(step, metrics, waited)
      keep()
      if step % config.eval.every_steps == 0 or step == num_steps:
        evaluate()
      if step % config.checkpoint.every_steps == 0 or step == num_steps:
        save()

    # --- The end -----------------------------------------------------------------
    if step > (bad_steps.last_saved or 0):  # asked to stop between checkpoints
      save()
    checkpoints.wait()
    judged = processes.everywhere(writer.has(step, "val/possible_share"))
    if step == num_steps and not judged:
      share = evaluator.possible_share(
        state.params, NUM_JUDGED_SAMPLES, config.train.seed
      )
      if share is not None:
        writer.write(step, {"val/possible_share": share})
    if jax.process_index() == 0:
      plot_loss(writer.records, workdir / "loss.png")
    return Result(
      step=step,
      metrics={k: v for record in writer.records for k, v in record.items()},
      stopped_by=stop.agreed_on if step < num_steps else None,
    )


def _with_own(
  config: ExperimentConfig, loss: Loss, optimizer: optax.GradientTransformation | None
) -> ExperimentConfig:
  """The config, with a note of a loss and an optimizer that the caller gave."""
  own = dict(config.own)
  if loss is not summed_loss:
    own["loss"] = origin(loss)
  if optimizer is not None:
    own["optimizer"] = "train:optimizer"  # made of functions of optax, without a name
  return dataclasses.replace(config, own=own)
