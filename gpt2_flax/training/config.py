"""The sections of an experiment's config, as frozen, checked dataclasses."""

import dataclasses
import math
import typing
from typing import Any

import jax

from gpt2_flax import datasets
from gpt2_flax.errors import InputError, unknown_name
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.self_attention import HEADS

OPTIMIZERS = ("adamw", "muon", "lion")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """See `optimizer.make_optimizer`. Numbers may be traced: one run of many, under vmap.

  Attributes:
    name: one of OPTIMIZERS.
    learning_rate: the peak, reached after warmup_steps, from 0.
    warmup_steps: linear; after that a cosine falls to 0 at the last step.
    weight_decay: decoupled, on kernels and embeddings only (muon: on kernels).
    beta1, beta2: decay of the first and second moments' averages.
    max_grad_norm: gradients with a larger global norm are scaled down to it.
  """

  name: str
  learning_rate: float
  warmup_steps: int
  weight_decay: float
  beta1: float
  beta2: float
  max_grad_norm: float

  def __post_init__(self):
    if self.name not in OPTIMIZERS:
      raise unknown_name("optimizer.name", self.name, OPTIMIZERS)
    for name in ("learning_rate", "max_grad_norm"):
      _require(getattr(self, name) > 0, "optimizer", name, self, "above 0")
    for name in ("warmup_steps", "weight_decay"):
      _require(getattr(self, name) >= 0, "optimizer", name, self, "0 or more")
    for name in ("beta1", "beta2"):
      value = getattr(self, name)
      _require((value >= 0) & (value < 1), "optimizer", name, self, "in [0, 1)")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How long, on how much at a time.

  Attributes:
    num_steps: optimizer steps in all.
    batch_size: windows in a step, over all devices.
    accumulation_steps: the batch is worked through in this many pieces, to save
      memory; the result is that of the whole batch.
    seed: of initialisation, dropout and the order of the data.
    log_every_steps: how often metrics are written.
    max_skipped_steps: how many bad steps may be left out, in all; one more stops the
      run. A step is bad if its loss or its gradient is not finite.
    max_loss_jump: a step is bad too if its loss is this many nats above the mean of the
      losses before it; 0 for no such limit.
  """

  num_steps: int
  batch_size: int
  accumulation_steps: int
  seed: int
  log_every_steps: int
  max_skipped_steps: int
  max_loss_jump: float

  def __post_init__(self):
    for name in ("num_steps", "batch_size", "accumulation_steps", "log_every_steps"):
      _require(getattr(self, name) >= 1, "train", name, self, "at least 1")
    for name in ("seed", "max_skipped_steps", "max_loss_jump"):
      _require(getattr(self, name) >= 0, "train", name, self, "0 or more")
    if self.batch_size % self.accumulation_steps:
      raise InputError(
        f"train.batch_size is {self.batch_size}: must be divisible by"
        f" train.accumulation_steps, which is {self.accumulation_steps}"
      )


MOST_PATTERNS = 1000  # characters; a run's folder may come from anyone


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
  """What learns, and how fast. All keys have defaults: all learns at one rate.

  A pattern is compared with a parameter's whole name, "blocks_0/attention/output/bias";
  * stands for any text and [01] for one of these characters. Several have commas
  between them.

  Attributes:
    train: patterns of the parameters that learn; "" for all. The others are frozen.
    layer_decay: each layer's learning rate as a share of that of the layer above it:
      see `tuning.scale_by_layer`.
    lora: patterns of the kernels that get an adapter each; then these alone learn: see
      `lora`. "" for none.
    lora_rank: of each adapter.
    lora_alpha: what an adapter adds is multiplied by lora_alpha / lora_rank.
  """

  train: str = ""
  layer_decay: float = 1.0
  lora: str = ""
  lora_rank: int = 8
  lora_alpha: float = 16.0

  def __post_init__(self):
    for name in ("train", "lora"):
      if len(getattr(self, name)) > MOST_PATTERNS:
        raise InputError(f"finetune.{name} is longer than {MOST_PATTERNS} characters")
    if self.train and self.lora:
      raise InputError(
        f"finetune.train is {self.train!r}: must be empty where finetune.lora is not"
      )
    decays = 0 < self.layer_decay <= 1
    _require(decays, "finetune", "layer_decay", self, "above 0, at most 1")
    _require(self.lora_rank >= 1, "finetune", "lora_rank", self, "at least 1")
    _require(self.lora_alpha > 0, "finetune", "lora_alpha", self, "above 0")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Validation.

  Attributes:
    every_steps: how often, besides after the last step.
    num_windows: how many validation windows, always the same; 0 means all there are.
    sample_tokens: how many tokens of text to generate each time; 0 for none.
  """

  every_steps: int
  num_windows: int
  sample_tokens: int

  def __post_init__(self):
    _require(self.every_steps >= 1, "eval", "every_steps", self, "at least 1")
    for name in ("num_windows", "sample_tokens"):
      _require(getattr(self, name) >= 0, "eval", name, self, "0 or more")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """Checkpoints.

  Attributes:
    every_steps: how often, besides after the last step and when stopped.
    keep: how many of the latest are kept.
    keep_steps: steps whose parameters stay for good beside the latest: "0,100,400"; or
      "log2", which is 0, 1, 2, 4, 8, ..., as in "Pythia" (Biderman et al., 2023),
      section 2.3; "" for none.
  """

  every_steps: int
  keep: int
  keep_steps: str = ""

  def __post_init__(self):
    _require(self.every_steps >= 1, "checkpoint", "every_steps", self, "at least 1")
    _require(self.keep >= 2, "checkpoint", "keep", self, "at least 2 (one is a spare)")
    listed = all(part.strip().isdecimal() for part in self.keep_steps.split(","))
    allowed = "empty, log2, or steps as in 0,100,400"
    known = self.keep_steps in ("", "log2") or listed
    _require(known, "checkpoint", "keep_steps", self, allowed)

  def stays(self, step: int) -> bool:
    """Whether keep_steps has the step."""
    if self.keep_steps == "log2":
      return step & (step - 1) == 0
    return str(step) in (part.strip() for part in self.keep_steps.split(","))


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How devices are arranged; the product must be their number.

  Attributes:
    data: copies of the model, each with its share of the batch; -1 takes all
      devices that are left.
    fsdp: the batch is split here too, and each parameter over its embed axis; must
      divide model.embed_dim.
    tensor: heads, feed-forward and vocabulary are split; must divide model.num_heads
      and model.mlp_dim. A vocabulary that it does not divide is stored whole.
  """

  data: int
  fsdp: int
  tensor: int

  def __post_init__(self):
    _require(
      self.data >= 1 or self.data == -1, "mesh", "data", self, "-1 or at least 1"
    )
    for name in ("fsdp", "tensor"):
      _require(getattr(self, name) >= 1, "mesh", name, self, "at least 1")


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
  """A whole experiment, one section a concern.

  Attributes:
    init_from: the run, folder or hub id whose weights it starts from; "" for random.
    profile: the folder that a trace of some steps goes to; "" for none.
    data: an instance of one of `datasets.CONFIGS`.
    model: with everything filled in that the data or init_from decides.
    own: which parts are not this package's own ("data", "tokenizer", "attention",
      "model", "loss", "optimizer"), and where each comes from: see `registry.origin`.
  """

  init_from: str
  profile: str
  data: Any
  model: GPT2Config
  optimizer: OptimizerConfig
  train: TrainConfig
  eval: EvalConfig
  checkpoint: CheckpointConfig
  mesh: MeshConfig
  own: dict[str, str] = dataclasses.field(default_factory=dict)
  finetune: FinetuneConfig = dataclasses.field(default_factory=FinetuneConfig)

  def to_dict(self) -> dict[str, Any]:
    """As JSON values; `from_dict` reads them."""
    values = dataclasses.asdict(self)
    values["data"] = {"name": self.data.name, **values["data"]}
    return values


def _require(holds: Any, section: str, name: str, config: Any, allowed: str) -> None:
  if isinstance(holds, jax.core.Tracer):
    return  # a sweep's, whose value is not known here
  if not holds:
    raise InputError(f"{section}.{name} is {getattr(config, name)}: must be {allowed}")


SECTIONS = {
  "optimizer": OptimizerConfig,
  "train": TrainConfig,
  "finetune": FinetuneConfig,
  "eval": EvalConfig,
  "checkpoint": CheckpointConfig,
  "mesh": MeshConfig,
}


TEXTS = ("init_from", "profile")  # keys outside of any section


def from_section(cls: type, section: str, values: dict[str, Any]) -> Any:
  """cls(**values), with every key and type checked."""
  fields = {field.name: field for field in dataclasses.fields(cls)}
  types = typing.get_type_hints(cls)
  for name in values:
    if name not in fields:
      raise unknown_name(f"key in config.{section} ({cls.__name__})", name, fields)
  checked = {}
  for name, field in fields.items():
    if name not in values:
      if field.default is dataclasses.MISSING:
        raise InputError(f"{section}.{name} is missing: must be of {types[name]}")
      continue
    value = values[name]
    if types[name] is float and type(value) is int and abs(value) < 1 << 53:
      value = float(value)
    if type(value) is not types[name]:
      raise InputError(
        f"{section}.{name} is {value!r}: must be of type {types[name].__name__}"
      )
    if types[name] is float and not math.isfinite(value):
      raise InputError(f"{section}.{name} is {value}: must be finite")
    checked[name] = value
  return cls(**checked)


def parse_sections(values: dict[str, Any]) -> dict[str, Any]:
  """All fields of an ExperimentConfig but the model, which depends on some of them."""
  expected = {*TEXTS, "data", "model", *SECTIONS}
  for section in values:
    if section not in expected:
      raise unknown_name("config section", section, expected)
  values = {"finetune": {}, **values}  # runs from before there was such a section
  for section in sorted(expected - set(TEXTS)):
    if not isinstance(values.get(section), dict):
      raise InputError(f"config.{section} is missing: must be a section of the config")
  for name in TEXTS:
    if not isinstance(values.get(name), str):
      raise InputError(f"config.{name} is missing: must be a text, perhaps empty")
  data_values = dict(values["data"])
  name = data_values.pop("name", None)
  if not isinstance(name, str) or name not in datasets.CONFIGS:
    raise unknown_name("data.name", str(name), datasets.CONFIGS)
  return {
    **{name: values[name] for name in TEXTS},
    "data": from_section(datasets.CONFIGS[name], "data", data_values),
    **{
      section: from_section(cls, section, values[section])
      for section, cls in SECTIONS.items()
    },
  }


def from_dict(values: dict[str, Any]) -> ExperimentConfig:
  """The config of a run that was made; its data and its source may be gone.

  Raises:
    InputError: a key is wrong, or the run has a part of yours that is not imported.
  """
  values = dict(values)
  own = values.pop("own", {})
  if not isinstance(own, dict) or not all(isinstance(v, str) for v in own.values()):
    raise InputError("config.own must be an object of texts")
  for registry, what, section, key in (
    (datasets.CONFIGS, "data", "data", "name"),
    (HEADS, "attention", "model", "attention"),
  ):
    if isinstance(values.get(section), dict):
      registry.check_imported(values[section].get(key), own.get(what))
  sections = parse_sections(values)
  model = from_section(GPT2Config, "model", values["model"])
  return ExperimentConfig(model=model, own=own, **sections)
