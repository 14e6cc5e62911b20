"""GPT-2 taken apart: a decoder-only Transformer from its parts, in JAX and Flax."""

import importlib
import pkgutil
from typing import Any

__version__ = "0.1.0"

_HOMES = {
  "load": "training.source",
  "steps": "training.source",
  "GPT2": "transformer",
  "GPT2Config": "model_config",
  "InputError": "errors",
  "MultiHeadAttention": "multihead_attention",
  "PositionalEncoding": "positional_encoding",
  "SelfAttention": "self_attention",
  "sinusoidal_positional_encoding": "positional_encoding",
}
__all__ = list(_HOMES)


def _submodules() -> set[str]:
  return {module.name for module in pkgutil.iter_modules(__path__)} - {"__main__"}


def __getattr__(name: str) -> Any:
  """Imports a part or a submodule when it is asked for.

  So `import gpt2_flax` does not import jax, and a command reports a wrong flag at once.
  """
  if name in _HOMES:
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
  if name in _submodules():
    return importlib.import_module(f"{__name__}.{name}")
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__, *_submodules()})
