"""All rows of the table, in its order."""

from tests.reliability.asked_to_stop import asked_to_stop
from tests.reliability.bad_steps import bad_steps
from tests.reliability.campaign import Row
from tests.reliability.damage import any_damage
from tests.reliability.data_order import same_batches
from tests.reliability.failed_save import raised_by_the_next
from tests.reliability.full_disk import full_disk
from tests.reliability.hostile import harmless
from tests.reliability.kill import killed
from tests.reliability.meshes import across_meshes
from tests.reliability.mismatch import refused
from tests.reliability.resume import resumed
from tests.reliability.stalls import stalled
from tests.reliability.workdirs import locked_out

ROWS = (
  Row(1, "a run stopped and gone on is bit-equal to one that never was", resumed),
  Row(
    2,
    "every batch equal: any stop, any number of workers, of devices",
    same_batches,
  ),
  Row(3, "killed amid a save, a run goes on from its newest whole checkpoint", killed),
  Row(
    4,
    "asked to stop in any phase, it is gone within 10 s and loses a step at most",
    asked_to_stop,
  ),
  Row(
    5,
    "the newest checkpoint truncated, emptied, a bit flipped, a file deleted, for every"
    " file in it: said aloud, and the one before it used",
    any_damage,
  ),
  Row(
    6,
    "a full disk: one line and exit code 1, what was there before is whole; with room"
    " again it goes on, bit-equal",
    full_disk,
  ),
  Row(
    7,
    "a save that fails in the background: raised as one line by the next save at the"
    " latest",
    raised_by_the_next,
  ),
  Row(8, "a checkpoint of any mesh goes on on every other", across_meshes),
  Row(
    9,
    "runs, arrays and weights of another dtype, shape, depth, vocabulary, number of"
    " heads or optimizer: refused, the first array named",
    refused,
  ),
  Row(
    10,
    "nan, inf, a spike, a masked batch: named, not learned from, one too many stops it",
    bad_steps,
  ),
  Row(
    11,
    "one of two processes killed or stopped: the other says so and ends; none while it"
    " compiles",
    stalled,
  ),
  Row(
    12,
    "a second run in a folder is refused and told of the first; a dead one is none",
    locked_out,
  ),
  Row(
    13,
    "hostile weights, adapters, tokenizers, configs, checkpoints, prompts, tokens on"
    " the page: no code run, nothing written, 5 s and 4 GB at most, one clear line",
    harmless,
  ),
)
