"""What may change when a run goes on, and what may not."""

from collections.abc import Collection
import dataclasses
import hashlib
import json
from typing import Any

from gpt2_flax.training.config import ExperimentConfig, SECTIONS, TEXTS

# Keys that change the run's numbers by no more than rounding (scan_layers also changes
# what dropout draws).
NO_NUMBERS = (
  "profile",
  "checkpoint",
  "mesh",
  "model.scan_layers",
  "model.remat",
  "train.log_every_steps",
)
# and those that let it go on for longer, and be looked at more often
MAY_CHANGE = (*NO_NUMBERS, "eval", "train.num_steps", "train.max_skipped_steps")


def _fixed(config: ExperimentConfig, may_change: Collection[str]) -> dict[str, Any]:
  """The values that may not change, by their keys."""
  values = config.to_dict()
  keys = {name: values.pop(name) for name in TEXTS}
  # where a part comes from may change, if it is the same by its name
  values["own"] = {k: v.rpartition(":")[2] for k, v in config.own.items()}
  for section, section_values in values.items():
    keys |= {f"{section}.{key}": value for key, value in section_values.items()}
  return {
    key: value
    for key, value in keys.items()
    if key not in may_change and key.partition(".")[0] not in may_change
  }


def fingerprint(config: ExperimentConfig) -> str:
  """The same for configs whose runs end with the same numbers: 16 digits.

  What has its default does not count, so that a key that is new does not either.
  """
  defaults = {
    f"{section}.{field.name}": field.default
    for section in ("data", "model", *SECTIONS)
    for field in dataclasses.fields(getattr(config, section))
  }
  values = _fixed(config, NO_NUMBERS)
  chosen = {k: v for k, v in values.items() if k not in defaults or v != defaults[k]}
  return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


def differences(
  before: ExperimentConfig,
  now: ExperimentConfig,
  may_change: Collection[str] = MAY_CHANGE,
) -> list[str]:
  """The keys in which a run's config differs from the one it was started with."""
  old, new = _fixed(before, may_change), _fixed(now, may_change)
  return [
    f"config.{key} was {old.get(key)!r}, is now {new.get(key)!r}"
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key)
  ]
