"""What one run owns: its folder, its place in the data, its checkpoints, its report.

How a step is computed is not said here: `loop` takes one run's steps, `together` those
of many runs at once.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import os
import pathlib
import signal
import time
from typing import Any

import jax
from jax.sharding import NamedSharding

from gpt2_flax.datasets import Dataset
from gpt2_flax.datasets.dataset import Batch
from gpt2_flax.datasets.pipeline import train_batches
from gpt2_flax.layers.layer_stacking import unstack_layers
from gpt2_flax.training import adapter_folder, processes
from gpt2_flax.training.bad_steps import BadSteps
from gpt2_flax.training.checkpoints import Checkpoints
from gpt2_flax.training.config import ExperimentConfig
from gpt2_flax.training.evaluation import Evaluator
from gpt2_flax.training.kept import read_frozen
from gpt2_flax.training.mesh import held_rows
from gpt2_flax.training.metrics import MetricsWriter, plot_loss, Write
from gpt2_flax.training.progress import Progress
from gpt2_flax.training.report import checked_measures, Report
from gpt2_flax.training.signals import StopSignals
from gpt2_flax.training.step import TrainState
from gpt2_flax.training.throughput import Throughput
from gpt2_flax.training.tuning import EVERYTHING, Lora, Tuning
from gpt2_flax.training.workdir import locked, open_workdir
from gpt2_flax.transformer import GPT2, num_params

NUM_JUDGED_SAMPLES = 256
ADAPTER = "adapter"  # the folder, in that of the run, for what PEFT opens

# (step, model, params) -> measures by name
OnEval = Callable[[int, GPT2, Any], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Result:
  """How a run ended.

  Attributes:
    step: the last step taken.
    metrics: the newest value under each name.
    stopped_by: the signal that ended it early, or None.
    asked_to_stop: the signal that asked it to, perhaps too late, or None.
  """

  step: int
  metrics: dict[str, float | str]
  stopped_by: signal.Signals | None
  asked_to_stop: signal.Signals | None = None

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
    adapter = f", {ADAPTER}/" if (workdir / ADAPTER).is_dir() else ""
    lines.append(
      f"  in {workdir}: loss.png, metrics.jsonl, tensorboard/, checkpoints/{adapter}"
    )
    return "\n".join(lines)


class Run:
  """A run at work in its folder: enter it, restore, begin, take its steps, finish.

  Args:
    config: of the run, as its folder is to have it.
    plain_model: with layers apart, as `on_eval` is to see it.
    sharding: of its batches.
    tuning: what of a state makes the model's params.
    on_eval, write, progress: see `loop.train`.
  """

  def __init__(
    self,
    config: ExperimentConfig,
    dataset: Dataset,
    workdir: str | os.PathLike,
    plain_model: GPT2,
    evaluator: Evaluator,
    sharding: NamedSharding,
    *,
    tuning: Tuning = EVERYTHING,
    on_eval: OnEval | None = None,
    write: Write | None = None,
    progress: Callable[..., Progress] = Progress,
  ):
    self._config, self._dataset = config, dataset
    self._workdir = pathlib.Path(workdir)
    self._plain_model, self._evaluator = plain_model, evaluator
    self._tuning = tuning
    self._whole = lambda state: state.params
    if tuning is not EVERYTHING:
      self._whole = jax.jit(lambda state: tuning.join(state.params, state.frozen))
    self._on_eval, self._write, self._make_progress = on_eval, write, progress
    train = config.train
    rows = held_rows(sharding, train.batch_size)  # that this process reads
    self._batches = train_batches(dataset, train.batch_size, train.seed, rows)
    self._first_position = self._batches.get_state()
    self._stack = contextlib.ExitStack()

  def __enter__(self) -> "Run":
    with contextlib.ExitStack() as stack:  # left at once if something is raised
      stack.enter_context(locked(self._workdir))
      open_workdir(self._workdir, self._config, self._dataset.tokenizer)
      self.checkpoints = stack.enter_context(
        Checkpoints(self._workdir / "checkpoints", self._config.checkpoint)
      )
      self._stack = stack.pop_all()
    return self

  def __exit__(self, *exception) -> None:
    self._stack.__exit__(*exception)

  # ---- Where it begins ---------------------------------------------------------------

  def restore(self, plain_abstract: TrainState) -> TrainState | None:
    """The newest checkpoint, layers apart; the data go on from there. None: no such."""
    restored = self.checkpoints.restore(plain_abstract)
    state, data_position = restored or (None, self._first_position)
    self._batches.set_state(data_position)
    if state is None or plain_abstract.frozen is None:
      return state
    folder = self._workdir / "checkpoints"
    return state.replace(frozen=read_frozen(folder, plain_abstract.frozen))

  def begin(self, state: TrainState, is_new: bool, about: str) -> int:
    """Opens what is written to, and returns the step that the state is at.

    Args:
      about: what the first line says of the model and the devices.
    """
    config, step = self._config, int(state.step)
    self._writer = MetricsWriter(self._workdir, start_step=step, write=self._write)
    self._progress = self._stack.enter_context(
      self._make_progress(config.train.num_steps, start_step=step)
    )
    size = f"{num_params(jax.eval_shape(self._whole, state)):,} parameters"
    if state.frozen is not None:
      size += f", of which or beside which {num_params(state.params):,} learn"
    self._progress.line(
      f"{size}, {about};"
      f" {'starts at' if is_new else 'goes on from'} step {step} of"
      f" {config.train.num_steps} in {self._workdir}"
    )
    if step > config.train.num_steps:
      self._progress.line("it has more steps than asked for: nothing is left to do")
    self._bad_steps = BadSteps(
      config.train.max_skipped_steps,
      num_seen=int(state.skipped),
      last_saved=None if is_new else step,
    )
    self._report = Report(
      self._writer,
      self._progress,
      Throughput(config.model, config.train.batch_size),
      self._bad_steps,
      config.train.log_every_steps,
    )
    if is_new:
      if state.frozen is not None:
        frozen = unstack_layers(state.frozen)
        self.checkpoints.save_frozen(frozen, self._config.to_dict())
      self._keep(step, state)
    return step

  # ---- Its steps ---------------------------------------------------------------------

  def next_batch(self) -> tuple[Batch, float]:
    """The rows of the next batch that this process reads, and seconds waited for it."""
    began = time.perf_counter()
    return next(self._batches), time.perf_counter() - began

  def stepped(self, step: int, metrics: dict[str, Any], waited: float) -> None:
    """Takes note of a step's metrics; they may still be on the device.

    Raises:
      DivergedError: the step before was one bad step too many.
    """
    self._report.stepped(step, metrics, waited)

  def has_work(self, step: int) -> bool:
    """Whether `tend` has anything to do after this step."""
    config = self._config
    every = config.eval.every_steps, config.checkpoint.every_steps
    return any(self._is_due(step, n) for n in every) or config.checkpoint.stays(step)

  def tend(self, step: int, state: TrainState) -> None:
    """Keeps, evaluates and saves after a step, where the config says so.

    Raises:
      DivergedError: this was one bad step too many.
      RunError: the disk is full.
    """
    self._keep(step, state)
    if self._is_due(step, self._config.eval.every_steps):
      self._evaluate(step, self._whole(state))
    if self._is_due(step, self._config.checkpoint.every_steps):
      self._save(step, state)

  def _is_due(self, step: int, every_steps: int) -> bool:
    return step % every_steps == 0 or step == self._config.train.num_steps

  def _keep(self, step: int, state: TrainState) -> None:
    if self._config.checkpoint.stays(step):
      params = unstack_layers(state.params)
      self.checkpoints.keep(step, params, self._config.to_dict())

  def _evaluate(self, step: int, params: Any) -> None:
    self._report.flush()
    losses = self._evaluator.losses(params)
    measures = {}
    if self._on_eval is not None:
      with jax.transfer_guard("allow"):
        measures = checked_measures(
          self._on_eval(step, self._plain_model, unstack_layers(params))
        )
    sample = self._evaluator.sample(params, seed=self._config.train.seed + step)
    self._report.evaluated(step, losses, measures, sample)

  def _save(self, step: int, state: TrainState) -> None:
    self._report.flush()  # raises if this was one bad step too many
    position = self._batches.get_state()
    state = unstack_layers(state.replace(frozen=None))
    self.checkpoints.save(state, position, self._config.to_dict())
    self._bad_steps.last_saved = step

  # ---- Its end -----------------------------------------------------------------------

  def finish(self, step: int, state: TrainState, stop: StopSignals) -> Result:
    """Saves what is not saved; at the last step judges samples; draws the losses."""
    if step > (self._bad_steps.last_saved or 0):  # asked to stop between checkpoints
      self._save(step, state)
    self.checkpoints.wait()
    self._save_adapters(state.params)
    is_last = step == self._config.train.num_steps
    judged = processes.everywhere(self._writer.has(step, "val/possible_share"))
    if is_last and not judged:
      share = self._evaluator.possible_share(
        self._whole(state), NUM_JUDGED_SAMPLES, self._config.train.seed
      )
      if share is not None:
        self._writer.write(step, {"val/possible_share": share})
    if jax.process_index() == 0:
      plot_loss(self._writer.records, self._workdir / "loss.png")
    return Result(
      step=step,
      metrics={k: v for record in self._writer.records for k, v in record.items()},
      stopped_by=None if is_last else stop.agreed_on,
      asked_to_stop=stop.received,
    )

  def _save_adapters(self, params: Any) -> None:
    """To a folder that PEFT opens, where it has names for all of them."""
    tuning = self._tuning
    if not isinstance(tuning, Lora) or jax.process_index():
      return
    kernels = [name for name, _ in tuning.kernels]
    if unnamed := adapter_folder.unnamed(kernels):
      self._progress.line(f"no {ADAPTER}/: PEFT has no name for {unnamed[0]}")
      return
    base = self._config.init_from
    if os.path.exists(base):  # it is found from any folder
      base = os.path.abspath(base)
    adapter_folder.save(
      self._workdir / ADAPTER, params, tuning.rank, tuning.alpha, base
    )
