"""All rows of the table, in its order."""

from tests.reliability.campaign import Row
from tests.reliability.data_order import same_batches
from tests.reliability.resume import resumed

ROWS = (
  Row(1, "a run stopped and gone on is bit-equal to one that never was", resumed),
  Row(
    2,
    "every batch equal: any stop, any number of workers, of devices",
    same_batches,
  ),
)
