"""Many runs as one: each value of some keys, from each of some seeds.

Each member is a run of its own in a folder of its own. What they came to is kept in a
table beside them, so that an interrupted sweep goes on, and no member runs twice.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import json
import os
import pathlib
import signal
import time
from typing import Any
import urllib.parse

import jax

from gpt2_flax.datasets import Dataset
from gpt2_flax.errors import InputError
from gpt2_flax.files.atomic import write_text
from gpt2_flax.files.json import read_json
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.training import loop
from gpt2_flax.training.bad_steps import DivergedError
from gpt2_flax.training.config import ExperimentConfig
from gpt2_flax.training.flops import flops_per_token
from gpt2_flax.training.kept import saved_steps
from gpt2_flax.training.mesh import make_mesh, require_fit
from gpt2_flax.training.metrics import read_metrics
from gpt2_flax.training.progress import SweepProgress
from gpt2_flax.training.resume import differences, fingerprint, NO_NUMBERS
from gpt2_flax.training.run import Result
from gpt2_flax.training.source import read_run_config
from gpt2_flax.training.together import Ended, program, train_together
from gpt2_flax.training.tuning import make_tuning
from gpt2_flax.training.workdir import locked
from gpt2_flax.transformer import abstract_params, GPT2, num_params

ROWS = "rows.jsonl"
AT_WORK = "together.json"  # the members of the program that is at work
OF_A_ROW = ("member", "over", "config", "num_params", "seconds", "diverged")
MOST_TOGETHER = 64  # members of one program, where nobody says

Row = dict[str, Any]  # of JSON values


@dataclasses.dataclass(frozen=True)
class Member:
  """One run of a sweep.

  Attributes:
    over: what makes it this member: keys of the config with their values.
  """

  over: Mapping[str, Any]
  config: ExperimentConfig
  dataset: Dataset

  @functools.cached_property
  def name(self) -> str:
    """That of its folder: "seed=0,learning_rate=0.02"; odd characters are %XX."""
    leaves = [key.rpartition(".")[2] for key in self.over]
    keys = [
      leaf if leaves.count(leaf) == 1 else key
      for leaf, key in zip(leaves, self.over, strict=True)
    ]
    values = [urllib.parse.quote(str(value), safe="+") for value in self.over.values()]
    return ",".join(f"{k}={v}" for k, v in zip(keys, values, strict=True))

  @property
  def cost(self) -> float:
    """Operations of the whole run, to guess how long it takes beside the others."""
    train, model = self.config.train, self.config.model
    tokens = train.num_steps * train.batch_size * model.context_length
    return float(tokens) * flops_per_token(model)


# (member, step, model, params) -> measures by name
OnEval = Callable[[Member, int, GPT2, Any], Mapping[str, float]]


def _say(line: str) -> None:
  print(line, flush=True)


def run_sweep(
  members: Sequence[Member],
  folder: str | os.PathLike,
  *,
  together: int = 0,
  model: Callable[[GPT2Config], GPT2] = GPT2,
  on_eval: OnEval | None = None,
  tell: Callable[[str], None] = _say,
) -> tuple[list[Row], signal.Signals | None]:
  """Runs the members that have not run yet.

  In turn, a member is `loop.train`'s, bit for bit. Together, it equals that up to
  rounding: see `together`. A member that diverges is marked, and the others go on. One
  that was begun goes on from where its folder stands: as it began, or else in turn.

  Args:
    folder: holds a folder a member, and ROWS.
    together: the most members of one program; 1 for all in turn. 0 decides: in turn on
      CPUs, which one small model keeps busy, and MOST_TOGETHER elsewhere.
    model, on_eval: as for `loop.train`; with them all run in turn.
    tell: takes a line about each member that has ended.

  Returns:
    What is known of the members, in their order, and the signal that ended it early.
    A row has "member", "over", "num_params", "seconds" and each measure of the end; or
    "diverged", which says why.

  Raises:
    InputError: two members are alike; or the folder holds some of another config.
    RunError: a member cannot go on, for another reason than that it diverged.
  """
  members = [
    dataclasses.replace(member, config=loop.with_own(member.config, model))
    for member in members
  ]
  folder = pathlib.Path(folder)
  if together < 0:
    raise InputError(f"together is {together}: must be 0 or more")
  if model is not GPT2 or on_eval is not None:
    together = 1
  elif not together:
    together = 1 if jax.default_backend() == "cpu" else MOST_TOGETHER
  _check(members, together, model)
  with locked(folder):
    table = _Table(folder, members, model)
    costs = {member.name: member.cost for member in members}
    asked = None
    with SweepProgress(costs, table.rows.keys() & costs, tell) as progress:
      for group in _groups(members, together, folder, table):
        asked = _run_group(group, folder, table, progress, model, on_eval)
        if asked:
          break
    rows = [table.rows[name] for name in costs if name in table.rows]
    return rows, asked if len(rows) < len(members) else None


def _check(
  members: Sequence[Member], together: int, model: Callable[[GPT2Config], GPT2]
) -> None:
  """Raises an InputError for what cannot run, before anything is written."""
  for name, times in collections.Counter(member.name for member in members).items():
    if times > 1:
      raise InputError(f"{name} is there twice: must be once")
    if not name:
      raise InputError("a member has an empty `over`: must say what makes it a member")
  for member in members:
    config = member.config
    make_tuning(config.finetune, model(config.model.plain))
    if together == 1 or program(config) is None:
      require_fit(config.model, make_mesh(config.mesh, config.train))


def _groups(
  members: Sequence[Member], together: int, folder: pathlib.Path, table: "_Table"
) -> list[list[Member]]:
  """Those to be run; members that run as one are together, in the order of the first.

  What is begun is not undone: a program that was at work goes on with its members,
  those that have diverged too; any other member that has a checkpoint goes on alone.
  """
  of_program: dict[Any, list[list[Member]]] = {}
  for member in members:
    at_work = member.name in table.at_work
    row = table.rows.get(member.name)
    if row and not (at_work and "diverged" in row):
      continue
    begun = bool(saved_steps(folder / member.name / "checkpoints"))
    shared = None
    if at_work or (together > 1 and not begun):
      shared = program(member.config)
    groups = of_program.setdefault((at_work, shared or member.name), [[]])
    if len(groups[-1]) == together:
      groups.append([])
    groups[-1].append(member)
  return [
    group
    for groups in of_program.values()
    for group in groups
    if any(member.name not in table.rows for member in group)
  ]


def _run_group(
  group: Sequence[Member],
  folder: pathlib.Path,
  table: "_Table",
  progress: SweepProgress,
  model: Callable[[GPT2Config], GPT2],
  on_eval: OnEval | None,
) -> signal.Signals | None:
  """Runs them; returns the signal that asked to stop, or None."""
  began = time.perf_counter()

  def end(number: int, ended: Ended) -> None:
    if isinstance(ended, Result) and ended.stopped_by:
      return
    member = group[number]
    seconds = (time.perf_counter() - began) / len(group)
    table.add(member, ended, seconds)
    progress.ended(member.name, _told(ended))

  shown = [functools.partial(progress.of_member, member.name) for member in group]
  if len(group) > 1:
    table.set_at_work([member.name for member in group])
    return train_together(
      [member.config for member in group],
      [member.dataset for member in group],
      [folder / member.name for member in group],
      end,
      shown,
      [i for i, member in enumerate(group) if member.name in table.rows],
    )
  (member,), (shown_one,) = group, shown
  watch = None if on_eval is None else functools.partial(_measured, on_eval, member)
  try:
    result = loop.train(
      member.config,
      member.dataset,
      folder / member.name,
      model=model,
      on_eval=watch,
      progress=shown_one,
    )
  except DivergedError as error:
    end(0, error)
    return None
  end(0, result)
  return result.asked_to_stop


def _measured(
  on_eval: OnEval, member: Member, step: int, model: GPT2, params: Any
) -> Mapping[str, float]:
  measures = on_eval(member, step, model, params)
  for name in OF_A_ROW:
    if isinstance(measures, Mapping) and name in measures:
      raise InputError(
        f"on_eval returned a measure {name!r}: must be none of {', '.join(OF_A_ROW)}"
      )
  return measures


def _told(ended: Ended) -> str:
  if isinstance(ended, DivergedError):
    return f"diverged: {ended}"
  shown = [name for name in ("val/loss", "val/gap") if name in ended.metrics]
  return "  ".join(f"{name} {ended.metrics[name]:.4f}" for name in shown)


class _Table:
  """The rows of a sweep, in memory and in ROWS.

  Attributes:
    rows: by the names of the members, those of earlier calls too.
    at_work: names of the members of the program that was at work last.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    members: Sequence[Member],
    model: Callable[[GPT2Config], GPT2],
  ):
    self._folder, self._path, self._model = folder, folder / ROWS, model
    at_work = folder / AT_WORK
    self.at_work = read_json(at_work)["members"] if at_work.exists() else []
    self.rows: dict[str, Row] = {row["member"]: row for row in read_metrics(self._path)}
    for member in members:
      row = self.rows.get(member.name)
      if row and row["config"] != fingerprint(member.config):
        raise InputError(
          f"--workdir={folder} holds a sweep with another config, so choose another:"
          f" {_changed(folder / member.name, member)}"
        )

  def set_at_work(self, names: Sequence[str]) -> None:
    """Notes that a program is at work, for when it is interrupted."""
    write_text(self._folder / AT_WORK, json.dumps({"members": names}) + "\n")

  def add(self, member: Member, ended: Ended, seconds: float) -> None:
    """Keeps how a member ended."""
    network = self._model(member.config.model.plain)
    row: Row = {
      "member": member.name,
      "over": dict(member.over),
      "config": fingerprint(member.config),
      "num_params": num_params(abstract_params(network)),
      "seconds": round(seconds, 1),
    }
    if isinstance(ended, DivergedError):
      row["diverged"] = str(ended)
    else:
      row["step"] = ended.step
      row |= {k: v for k, v in ended.metrics.items() if not isinstance(v, str)}
    self.rows[member.name] = row
    write_text(self._path, "".join(f"{json.dumps(r)}\n" for r in self.rows.values()))


def _changed(workdir: pathlib.Path, member: Member) -> str:
  """What is not as it was, for a message."""
  try:
    changed = differences(read_run_config(workdir), member.config, NO_NUMBERS)
  except InputError:  # its folder is gone
    changed = []
  return "; ".join(changed) or f"that of {member.name} has changed"
