"""All rows of the table, in its order."""

from tests.reliability.campaign import Row
from tests.reliability.data_order import same_batches
from tests.reliability.meshes import across_meshes
from tests.reliability.resume import resumed

ROWS = (
  Row(1, "a run stopped and gone on is bit-equal to one that never was", resumed),
  Row(
    2,
    "every batch equal: any stop, any number of workers, of devices",
    same_batches,
  ),
  Row(8, "a checkpoint of any mesh goes on on every other", across_meshes),
)
