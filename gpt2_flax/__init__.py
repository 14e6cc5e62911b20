"""GPT-2 taken apart: a decoder-only Transformer from its parts, in JAX and Flax."""

import importlib
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


def __getattr__(name: str) -> Any:
  """Imports a part when it is asked for: what is wrong with a flag is said before."""
  if name not in _HOMES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
