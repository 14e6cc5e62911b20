"""Makes a save or a read that fails print one error only."""

import pathlib
import sys
from typing import Any
import warnings

from absl import logging
import orbax.checkpoint as ocp


def quiet_orbax() -> None:
  """A failure is raised as one error, and nothing else is printed about it.

  Otherwise orbax logs the error too, with its stack. The other arrays of the same save
  or read then fail as well or are not begun, and Python or tensorstore prints a line
  about each of them.
  """
  array = "(async_serialize_from_host|Store._get_array_metadatas|_read_array_index)"
  never = f"coroutine '{array}.* was never awaited"
  warnings.filterwarnings("ignore", never, RuntimeWarning)
  logging.get_absl_logger().addFilter(_is_not_orbax)
  logging.logging.getLogger("asyncio").addFilter(_is_no_write)
  if sys.unraisablehook is sys.__unraisablehook__:  # nobody has set another one
    sys.unraisablehook = _tell_unraisable


def _is_not_orbax(record: logging.logging.LogRecord) -> bool:
  return not record.pathname.startswith(str(pathlib.Path(ocp.__file__).parent))


def _is_no_write(record: logging.logging.LogRecord) -> bool:
  message = record.getMessage()
  return "never retrieved" not in message or "Error writing" not in message


def _tell_unraisable(unraisable: Any) -> None:
  if str(unraisable.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(unraisable)
