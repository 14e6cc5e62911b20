"""Arrays as JSON values: little-endian numbers as base64, and their shape."""

import base64
from typing import Any

import numpy as np


def encoded(values: Any, dtype: str = "f4") -> dict[str, Any]:
  """As float32 "f4", or float64 "f8"."""
  return _json(np.asarray(values, f"<{dtype}")) | {"type": dtype}


def rounded(values: Any) -> dict[str, Any]:
  """In 16 bits: 65,535 steps of one size, from the largest value to its opposite."""
  values = np.asarray(values, np.float64)
  scale = float(np.abs(values).max(initial=0.0)) / 32767 or 1.0
  return _json(np.rint(values / scale).astype("<i2")) | {"type": "i2", "scale": scale}


def decoded(array: dict[str, Any]) -> np.ndarray:
  """The values again, as the page reads them."""
  values = np.frombuffer(base64.b64decode(array["data"]), f"<{array['type']}")
  if "scale" in array:
    values = (values * array["scale"]).astype("f4")
  return values.reshape(array["shape"])


def _json(values: np.ndarray) -> dict[str, Any]:
  data = base64.b64encode(values.tobytes()).decode("ascii")
  return {"shape": values.shape, "data": data}
