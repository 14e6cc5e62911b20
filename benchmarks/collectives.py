"""What devices send each other in a compiled program, read from its HLO text.

An instruction inside a loop counts once for each of its `known_trip_count` turns. Bytes
are what one device sends when the n devices of a group form a ring: for an array that
is B bytes when whole, (n - 1) / n B for an all-gather, reduce-scatter or all-to-all,
and twice that for an all-reduce. "Bandwidth Optimal All-reduce Algorithms for Clusters
of Workstations" (Patarasuk & Yuan, 2009).

XLA for CPUs writes two things in a form of its own, which is undone here:

  - It widens bfloat16 to float32 (and says `_promoted`, or converts right before): what
    was bfloat16 counts as such.
  - It has no pass that makes a reduce-scatter of an all-reduce of which each device
    keeps its n-th part only: such an all-reduce counts as a reduce-scatter.
"""

from collections.abc import Iterator
import dataclasses
import math
import re
from typing import NamedTuple

import numpy as np

KINDS = (
  "all-gather",
  "reduce-scatter",
  "all-reduce",
  "all-to-all",
  "collective-permute",
)
# What changes neither which values there are nor how many.
_PASSES_ON = ("bitcast", "convert", "copy", "reshape", "transpose")
_ITEM_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}

_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(
  r"\s+(ROOT )?%([\w.-]+) = (\((?:[^()]|\([^()]*\))*\)|\S+) ([\w-]+)\(([^)]*)\)(.*)"
)
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


class Transfer(NamedTuple):
  """An array that goes through a collective.

  Attributes:
    kind: one of KINDS.
    count: how often in a run of the program.
    bytes_sent: by one device, all times together.
    bytes_as_compiled: the same, had nothing been undone.
    group: int, the devices of one of the groups that exchange it.
  """

  kind: str
  count: int
  bytes_sent: float
  bytes_as_compiled: float
  group: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  shape: str
  opcode: str
  inside: str  # the parentheses
  rest: str
  is_root: bool

  @property
  def operands(self) -> list[str]:
    return re.findall(r"%([\w.-]+)", self.inside)

  def attribute(self, name: str) -> str:
    found = re.search(rf"\b{name}=%?([\w.-]+)", self.rest)
    return found[1] if found else ""

  @property
  def size(self) -> int:
    """Number of values in an array."""
    (_, dims), *_ = _ARRAY.findall(self.shape)
    return math.prod(int(dim) for dim in dims.split(",") if dim)

  @property
  def item_bytes(self) -> int:
    dtype = _ARRAY.findall(self.shape)[0][0]
    return _ITEM_BYTES.get(dtype) or int(re.sub(r"\D", "", dtype)) // 8  # s32, u8


class Program:
  """The computations of an HLO text, each by name its instructions by name."""

  def __init__(self, text: str):
    self.computations: dict[str, dict[str, _Instruction]] = {}
    self.entry = ""
    for line in text.splitlines():
      if header := _HEADER.match(line):
        instructions = self.computations.setdefault(header[2], {})
        self.entry = header[2] if header[1] else self.entry
      elif found := _INSTRUCTION.match(line):
        root, name, *parts = found.groups()
        instructions[name] = _Instruction(name, *parts, is_root=bool(root))

  def transfers(self) -> Iterator[Transfer]:
    """All of them, in no order."""
    for computation, times in self._times(self.entry, 1):
      for instruction in self.computations[computation].values():
        kind = instruction.opcode.removesuffix("-start")
        if kind in KINDS:
          for place in range(len(instruction.operands)):
            yield self._transfer(computation, instruction, place, kind, times)

  def _times(self, name: str, times: int) -> Iterator[tuple[str, int]]:
    """This computation and those it calls, with how often each is run."""
    yield name, times
    for instruction in self.computations[name].values():
      if instruction.opcode == "while":
        trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.rest)
        if not trips:
          raise ValueError(f"{instruction.name}: a loop of unknown length")
        yield from self._times(instruction.attribute("body"), times * int(trips[1]))
      elif instruction.opcode == "conditional":
        raise ValueError(f"{instruction.name}: which branch is run is unknown")
      elif instruction.opcode == "call":
        yield from self._times(instruction.attribute("to_apply"), times)

  def _transfer(
    self,
    computation: str,
    instruction: _Instruction,
    place: int,
    kind: str,
    times: int,
  ) -> Transfer:
    operand = self.computations[computation][instruction.operands[place]]
    group = first_group(instruction.rest)

    def sent(kind: str, item_bytes: int) -> float:
      size = operand.size * item_bytes * times
      match kind:
        case "all-gather":
          return size * (len(group) - 1)
        case "collective-permute":
          return size
        case "all-reduce":
          return 2 * size * (len(group) - 1) / len(group)
      return size * (len(group) - 1) / len(group)

    widened = instruction.attribute("to_apply").endswith("_promoted")
    widened |= self._from_bfloat16(computation, operand)
    item_bytes = 2 if widened else operand.item_bytes
    meant = kind
    if kind == "all-reduce" and self._kept_parts(
      computation, instruction, place, len(group)
    ):
      meant = "reduce-scatter"
    return Transfer(
      meant, times, sent(meant, item_bytes), sent(kind, operand.item_bytes), group
    )

  def _from_bfloat16(self, computation: str, instruction: _Instruction) -> bool:
    """Whether it was converted from bfloat16 and then only moved."""
    if instruction.opcode == "fusion":
      computation = instruction.attribute("calls")
      fused = self.computations[computation].values()
      (root,) = (each for each in fused if each.is_root)
      return self._from_bfloat16(computation, root)
    if instruction.opcode not in (*_PASSES_ON, "pad"):
      return False
    source = self.computations[computation][instruction.operands[0]]
    if instruction.opcode == "convert" and source.shape.startswith("bf16["):
      return True
    return self._from_bfloat16(computation, source)

  def _kept_parts(
    self, computation: str, reduced: _Instruction, place: int, parts: int
  ) -> bool:
    """Whether of an all-reduce's result at `place` only the n-th part is used."""
    users = self._users(computation, reduced.name)
    if reduced.shape.startswith("("):
      (element,) = (u for u in users if u.attribute("index") == str(place))
      return self._sliced(computation, element, parts)
    return self._sliced(computation, reduced, parts)

  def _sliced(
    self, computation: str, whole: _Instruction, parts: int, outside: bool = False
  ) -> bool:
    """Whether all that is used of an array are slices of the n-th part of its size.

    `outside` says so of what the computation returns.
    """

    def only_part(user: _Instruction) -> bool:
      if user.opcode == "dynamic-slice":
        return user.size * parts == whole.size
      if user.opcode == "fusion":
        fused = user.attribute("calls")
        returned = user.size == whole.size and self._sliced(computation, user, parts)
        return all(
          self._sliced(fused, parameter, parts, returned)
          for number, operand in enumerate(user.operands)
          if operand == whole.name
          for parameter in self.computations[fused].values()
          if parameter.opcode == "parameter" and parameter.inside == str(number)
        )
      return user.opcode in _PASSES_ON and self._sliced(
        computation, user, parts, outside
      )

    if whole.is_root:
      return outside
    users = self._users(computation, whole.name)
    return parts > 1 and bool(users) and all(map(only_part, users))

  def _users(self, computation: str, name: str) -> list[_Instruction]:
    instructions = self.computations[computation].values()
    return [user for user in instructions if name in user.operands]


def first_group(attributes: str) -> np.ndarray:
  """int [n], one of an instruction's groups of devices; the others are like it.

  Raises:
    ValueError: they are written in none of the ways that are known here.
  """
  if pairs := re.search(r"source_target_pairs=\{\{([\d,]+)\}", attributes):
    return np.array([int(i) for i in pairs[1].split(",")])
  if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
    return np.array([int(i) for i in listed[1].split(",")])
  if iota := re.search(
    r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes
  ):
    return _devices(iota[2]).reshape(_numbers(iota[1]))[0]
  mesh = re.search(
    r"replica_groups=mesh\[([^]]*)\](?:, device_ids=\(([^ ]*)\))? \{([^}]*)\}",
    attributes,
  )
  if not mesh or ":" in mesh[3]:
    raise ValueError(f"groups of devices in an unknown form: {attributes}")
  axes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
  sizes = [int(size) for size in axes.values()]
  devices = _devices(mesh[2] or f"[{math.prod(sizes)}]").reshape(sizes)
  shared = re.findall(r"'(\w+)'", mesh[3])
  # The group is along the shared axes; of all others the first place.
  return devices[tuple(slice(None) if a in shared else 0 for a in axes)].ravel()


def ring_speed(group: np.ndarray, node: int, within: float, between: float) -> float:
  """Bytes a second that each of a group sends round a ring.

  Between nodes, as many rings run side by side as the group has members in a node: each
  has a network card, and passes on its share of every ring inside the node.

  Args:
    group: int [n], the devices.
    node: how many devices share one, in order.
    within: bytes/s that a device sends to others of its node.
    between: bytes/s that a device's own card sends to other nodes.
  """
  members = np.unique(group // node, return_counts=True)[1]
  if len(members) == 1:
    return within
  return min(within, members.min() * between)


def _numbers(text: str) -> list[int]:
  return [int(number) for number in text.split(",")]


def _devices(iota: str) -> np.ndarray:
  """ "[2,4]T(1,0)": 0, 1, ... as [2, 4], transposed, and flat."""
  shape, _, order = iota.partition("T")
  sizes = _numbers(shape.strip("[]"))
  devices = np.arange(math.prod(sizes)).reshape(sizes)
  return (devices.transpose(_numbers(order.strip("()"))) if order else devices).ravel()
