"""What may change when a run goes on, and what may not."""

from typing import Any

from gpt2_flax.training.config import ExperimentConfig, TEXTS

# Keys that change the run's numbers by no more than rounding (scan_layers also changes
# what dropout draws), and the key that lets it go on for longer.
MAY_CHANGE = (
  "profile",
  "eval",
  "checkpoint",
  "mesh",
  "model.scan_layers",
  "model.remat",
  "train.num_steps",
  "train.log_every_steps",
  "train.max_skipped_steps",
)


def differences(before: ExperimentConfig, now: ExperimentConfig) -> list[str]:
  """The keys in which a run's config differs from the one it was started with."""

  def flat(config: ExperimentConfig) -> dict[str, Any]:
    values = config.to_dict()
    keys = {name: values.pop(name) for name in TEXTS}
    # where a part comes from may change, if it is the same by its name
    values["own"] = {k: v.rpartition(":")[2] for k, v in config.own.items()}
    for section, section_values in values.items():
      keys |= {f"{section}.{key}": value for key, value in section_values.items()}
    return {
      key: value
      for key, value in keys.items()
      if key not in MAY_CHANGE and key.partition(".")[0] not in MAY_CHANGE
    }

  old, new = flat(before), flat(now)
  return [
    f"config.{key} was {old.get(key)!r}, is now {new.get(key)!r}"
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key)
  ]
