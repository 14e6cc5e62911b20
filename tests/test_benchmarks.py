"""What benchmarks count, on programs small enough to count by hand."""

from absl.testing import parameterized
import chex
import numpy as np

from benchmarks.collectives import first_group, Program, ring_speed

# Four devices, as a mesh of two by two. The loop turns five times; in each turn
#   weights of 8 x 6, half on each, are gathered along the second axis: bfloat16 that
#     the compiler has widened (the fusion shows it);
#   of two sums over all four, `whole` is used whole, of `parts` each keeps a fourth.
# After it, a sum of bfloat16 that the compiler has widened (`_promoted`), and a ring.
PROGRAM = """\
HloModule jit_step, entry_computation_layout={(f32[4,6]{1,0})->f32[8]{0}}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%add_promoted (x.1: f32[], y.1: f32[]) -> f32[] {
  %x.1 = f32[] parameter(0)
  %y.1 = f32[] parameter(1)
  ROOT %sum.1 = f32[] add(%x.1, %y.1)
}

%widened (p: f32[4,6]) -> f32[4,6] {
  %p = f32[4,6]{1,0} parameter(0)
  %narrow = bf16[4,6]{1,0} convert(%p), metadata={op_name="jit(step)/convert"}
  %wide = f32[4,6]{1,0} convert(%narrow)
  ROOT %moved = f32[4,6]{0,1} copy(%wide)
}

%narrowed (p.1: f32[8]) -> bf16[8] {
  %p.1 = f32[8]{0} parameter(0)
  ROOT %narrow.1 = bf16[8]{0} convert(%p.1)
}

%part (p.2: bf16[8], p.3: s32[]) -> f32[2] {
  %p.2 = bf16[8]{0} parameter(0)
  %p.3 = s32[] parameter(1)
  %mine = bf16[2]{0} dynamic-slice(%p.2, %p.3), dynamic_slice_sizes={2}
  ROOT %wide.1 = f32[2]{0} convert(%mine)
}

%body (arg: (s32[], f32[4,6], f32[8])) -> (s32[], f32[4,6], f32[8]) {
  %arg = (s32[], f32[4,6]{1,0}, f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %shard = f32[4,6]{1,0} get-tuple-element(%arg), index=1
  %x.2 = f32[8]{0} get-tuple-element(%arg), index=2
  %ready = f32[4,6]{0,1} fusion(%shard), kind=kLoop, calls=%widened
  %weights = f32[8,6]{0,1} all-gather(%ready), channel_id=1, \
replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, dimensions={0}
  %sums = (f32[8]{0}, /*index=1*/f32[8]{0}) all-reduce(%x.2, /*index=1*/%x.2), \
replica_groups={{0,1,2,3}}, to_apply=%add
  %whole = f32[8]{0} get-tuple-element(%sums), index=0
  %parts = f32[8]{0} get-tuple-element(%sums), index=1
  %parts.1 = bf16[8]{0} fusion(%parts), kind=kLoop, calls=%narrowed
  %mine.1 = f32[2]{0} fusion(%parts.1, %i), kind=kLoop, calls=%part
  ROOT %next = (s32[], f32[4,6]{1,0}, f32[8]{0}) tuple(%i, %shard, %whole)
}

%more (arg.1: (s32[], f32[4,6], f32[8])) -> pred[] {
  %arg.1 = (s32[], f32[4,6]{1,0}, f32[8]{0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (shard.1: f32[4,6]) -> f32[8] {
  %shard.1 = f32[4,6]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %zeros = f32[8]{0} constant({0, 0, 0, 0, 0, 0, 0, 0})
  %start = (s32[], f32[4,6]{1,0}, f32[8]{0}) tuple(%zero, %shard.1, %zeros)
  %loop = (s32[], f32[4,6]{1,0}, f32[8]{0}) while(%start), condition=%more, \
body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %x.3 = f32[8]{0} get-tuple-element(%loop), index=2
  %sum.2 = f32[8]{0} all-reduce(%x.3), replica_groups=[2,2]<=[2,2]T(1,0), \
to_apply=%add_promoted
  ROOT %passed = f32[8]{0} collective-permute(%sum.2), \
source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
}
"""


class CollectivesTest(chex.TestCase):
  def test_counts_what_a_device_sends(self):
    found = {
      transfer.kind if transfer.count == 5 else f"last {transfer.kind}": (
        transfer.bytes_sent,
        transfer.bytes_as_compiled,
        transfer.group.tolist(),
      )
      for transfer in Program(PROGRAM).transfers()
    }
    everyone = [0, 1, 2, 3]
    expected = {
      # 24 values of 2 bytes to one other device, five times
      "all-gather": (240, 480, [0, 1]),
      # 8 values of 4 bytes, three fourths of them, twice; and once where parts are kept
      "all-reduce": (240, 240, everyone),
      "reduce-scatter": (120, 240, everyone),
      # 8 values of 2 bytes, half of them, twice
      "last all-reduce": (16, 32, [0, 2]),
      "last collective-permute": (32, 32, [0, 1]),
    }
    self.assertEqual(found, expected)

  def test_a_sum_with_another_use_is_needed_whole(self):
    text = PROGRAM.replace("tuple(%i, %shard, %whole)", "tuple(%i, %shard, %parts)")
    kinds = [transfer.kind for transfer in Program(text).transfers()]
    self.assertNotIn("reduce-scatter", kinds)

  def test_a_slice_that_is_not_one_of_n_parts_is_not_scattered(self):
    text = PROGRAM.replace("{{0,1,2,3}}", "{{0,1},{2,3}}")
    kinds = [transfer.kind for transfer in Program(text).transfers()]
    self.assertNotIn("reduce-scatter", kinds)

  def test_a_loop_of_unknown_length_is_no_guess(self):
    text = PROGRAM.replace("known_trip_count", "something_else")
    with self.assertRaisesRegex(ValueError, "loop: a loop of unknown length"):
      list(Program(text).transfers())

  @parameterized.parameters(
    ("replica_groups={{0,4},{1,5}}", [0, 4]),
    ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
    ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
    ("replica_groups=mesh['a'=2,'b'=1,'c'=4] {'c','b'}", [0, 1, 2, 3]),
    ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", [0, 1, 2, 3]),
    ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", [0, 4]),
  )
  def test_groups_in_all_their_forms(self, attributes, expected):
    np.testing.assert_array_equal(first_group(attributes), expected)

  def test_a_form_that_is_not_known_is_refused(self):
    with self.assertRaisesRegex(ValueError, "unknown form"):
      first_group("replica_groups=mesh['a'=8] {'a':(1)2}")

  @parameterized.parameters(
    ([0, 1, 2, 3], 450),  # in one node
    ([0, 8, 16], 50),  # each through its own card, alone
    ([0, 4, 8, 12], 100),  # two in each node: two rings
    (range(16), 400),
    (range(32), 400),
  )
  def test_speed_of_a_ring(self, group, expected):
    speed = ring_speed(np.array(group), node=8, within=450, between=50)
    self.assertEqual(speed, expected)
