"""Where steps stand in nested boxes, from top to bottom.

Each box is laid out on its own, innermost first. Its steps stand in rows, below what
they read; an arrow that passes a row has a lane there; rows are then shifted until each
step stands as near as it can to what it is joined with. A box's additions stand in one
line, the residual stream. Lengths are in pixels.
"""

import collections
import dataclasses
import itertools
from typing import Any

PAD, GAP, SIDE, CORNER = 24, 36, 24, 7
HALF_CIRCLE = 11


@dataclasses.dataclass(eq=False)
class Item:
  """What stands in a row; x is its middle, y its top.

  Attributes:
    content: a step or a box; None for an arrow's end at the border, and for its lane.
    fixed: stands on the stream, and is not moved.
    beside: the item of the same row that it stands beside, on the left.
  """

  content: Any = None
  width: float = 0
  height: float = 0
  x: float = 0
  y: float = 0
  row: int = 0
  fixed: bool = False
  is_lane: bool = False
  on_stream: bool = False
  beside: "Item | None" = None

  @property
  def middle_port(self) -> float:
    """Where a box's first array comes in, from the middle; 0 for a step."""
    if not isinstance(self.content, Box):
      return 0
    return self.port(next(iter(self.content.entries)), entering=True)

  @property
  def reach(self) -> float:
    """From the middle to where a neighbour on the right may begin."""
    half = self.width / 2 + SIDE
    if self.content is None or isinstance(self.content, Box):
      return half
    return max(half, 20 * len(self.content.shape) + 6)

  def port(self, step: Any, entering: bool) -> float:
    """Where the array of `step` comes in or goes out, from the middle."""
    if not isinstance(self.content, Box):
      return 0
    ports = self.content.entries if entering else self.content.exits
    return ports[step].x - self.width / 2


@dataclasses.dataclass(eq=False)
class Arrow:
  """The array of a step on its way from item to item; `via` are its lanes."""

  step: Any
  source: Item
  target: Item
  is_stream: bool
  via: list[Item] = dataclasses.field(default_factory=list)


class Box:
  """A module's steps, laid out; the whole picture has no module."""

  def __init__(self, module: Any, steps: list, everything: list, depth: int = 0):
    self.module, self.steps = module, steps
    self.items: list[Item] = []
    self.entries: dict[Any, Item] = {}
    self.exits: dict[Any, Item] = {}

    def inside(step):
      return step.modules[depth] if len(step.modules) > depth else step

    holder = {}
    for part, members in itertools.groupby(steps, inside):
      members = list(members)
      if part is members[0]:
        item = _step_item(part)
      else:
        box = Box(part, members, everything, depth + 1)
        item = Item(box, box.width, box.height)
      self.items.append(item)
      holder.update(dict.fromkeys(members, item))

    arrows = {}
    for reader in [*everything, None]:
      for step in reader.inputs if reader else everything[-1:]:
        source, target = holder.get(step), holder.get(reader)
        if source is target:
          continue
        if source is None:
          source = self.entries.setdefault(step, Item())
        if target is None:
          target = self.exits.setdefault(step, Item())
        arrow = Arrow(step, source, target, False)
        arrow = arrows.setdefault((source, target, step), arrow)
        arrow.is_stream |= _is_stream(step, reader)
    self.arrows = list(arrows.values())
    self._set_rows()
    self._set_columns()
    self._set_size()

  def _set_rows(self) -> None:
    into = {item: [a for a in self.arrows if a.target is item] for item in self.items}
    for item in self.items:
      item.row = 1 + max((arrow.source.row for arrow in into[item]), default=0)
    for arrow in self.arrows:
      if arrow.source in into and not into[arrow.source]:
        # what reads nothing stands near its reader
        if isinstance(arrow.target.content, Box) or len(into[arrow.target]) == 1:
          arrow.source.row = max(1, arrow.target.row - 1)
        else:
          arrow.source.row, arrow.source.beside = arrow.target.row, arrow.target
    bottom = 1 + max(item.row for item in self.items)
    for item in self.exits.values():
      item.row = bottom
    for arrow in self.arrows:
      rows = range(arrow.source.row + 1, arrow.target.row)
      arrow.via = [Item(row=row, is_lane=True) for row in rows]
      if arrow.is_stream and self.module is not None:
        for item in [arrow.source, *arrow.via, arrow.target]:
          item.fixed = True
    lanes = [lane for arrow in self.arrows for lane in arrow.via]
    everything = [*self.entries.values(), *self.items, *lanes, *self.exits.values()]
    self.rows = [
      [item for item in everything if item.row == row] for row in range(bottom + 1)
    ]

  def _neighbours(self) -> tuple[dict, dict]:
    """What attracts each item: those above, those below, with the offset to stand at.

    The residual stream attracts most, then a neighbour, then a lane, and least of all a
    step that reads nothing, which can stand anywhere. Only the strongest count.
    """
    above, below = collections.defaultdict(list), collections.defaultdict(list)
    read = {arrow.target for arrow in self.arrows} | set(self.entries.values())
    for arrow in self.arrows:
      if arrow.source.beside or arrow.source.fixed or arrow.target.fixed:
        continue
      for upper, lower in itertools.pairwise([arrow.source, *arrow.via, arrow.target]):
        offset = upper.port(arrow.step, False) - lower.port(arrow.step, True)
        reads_nothing = arrow.source not in read
        strength = 3 if arrow.is_stream else 0 if reads_nothing else 2
        above[lower].append((strength - upper.is_lane, upper, offset))
        below[upper].append((strength - lower.is_lane, lower, -offset))
        upper.on_stream |= arrow.is_stream
        lower.on_stream |= arrow.is_stream

    def strongest(links: list) -> list:
      most = max(strength for strength, *_ in links)
      return [(item, offset) for strength, item, offset in links if strength == most]

    def attracting(side: dict) -> dict:
      return collections.defaultdict(list, {i: strongest(ls) for i, ls in side.items()})

    return attracting(above), attracting(below)

  def _set_columns(self) -> None:
    above, below = self._neighbours()
    if any(item.fixed for item in self.items):
      # to the right of the stream, all in one line
      widest = max(self.items, key=lambda item: item.width)
      line = widest.width / 2 + HALF_CIRCLE + 1.3 * SIDE + widest.middle_port
      for item in self.items:
        if not item.fixed:
          item.x = line - item.middle_port
    for sweep in range(25):
      near, far = (below, above) if sweep % 2 else (above, below)
      for row in self.rows[::-1] if sweep % 2 else self.rows:
        for item in row:
          drawn_to = near[item] or far[item]
          if drawn_to and not item.fixed:
            item.x = sum(i.x + offset for i, offset in drawn_to) / len(drawn_to)
        if sweep < 2:
          row.sort(key=lambda item: (not item.fixed, item.x, item.is_lane))
        _spread([item for item in row if not item.beside])
    for arrow in self.arrows:
      for lane in arrow.via:
        lane.x = max(lane.x for lane in arrow.via)
    for item in self.items:
      if item.beside:
        item.x = item.beside.x - (item.beside.width + item.width) / 2 - SIDE

  def _set_size(self) -> None:
    everything = [item for row in self.rows for item in row]
    left = min(item.x - item.width / 2 for item in everything) - PAD
    self.width = max(item.x + item.width / 2 for item in everything) + PAD - left
    if self.module is not None:  # its name fits beside the arrow that enters
      port = max((item.x for item in self.entries.values()), default=left) - left
      self.width = max(self.width, port + 7.6 * len(self.module.title) + 24)
    y = 0.0 if self.module is not None else PAD
    for row in self.rows:
      tall = max((item.height for item in row), default=0)
      for item in row:
        item.x -= left
        item.y = y + (tall - item.height) / 2
      y += (tall + GAP) * bool(row)
    self.height = y - GAP


def _is_stream(step: Any, reader: Any) -> bool:
  """From addition to addition: the residual stream, and its beginning and end."""
  if reader is not None and reader.label == "+":
    return reader.inputs[0] is step
  return step.label == "+" and reader is not None and not reader.modules


def _step_item(step: Any) -> Item:
  if step.label == "+":
    return Item(step, 2 * HALF_CIRCLE, 2 * HALF_CIRCLE)
  width = max(7.4 * len(step.label), 5.9 * len(step.note)) + 26
  return Item(step, width, 44 if step.note else 30)


def _spread(row: list[Item]) -> None:
  """Moves neighbours apart, each as little as can be (pool adjacent violators)."""
  blocks: list[list[float]] = []  # sum of weighted wishes, weight, count
  shifts, shift = [], 0.0
  for left, item in zip([None, *row], row, strict=False):
    if left is not None:
      shift += left.reach + item.width / 2
    shifts.append(shift)
    weight = 1e9 if item.fixed else 1e4 if item.on_stream else 1.0
    blocks.append([(item.x - shift) * weight, weight, 1])
    while len(blocks) > 1 and _mean(blocks[-2]) > _mean(blocks[-1]):
      last = blocks.pop()
      blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
  starts = [wish / weight for wish, weight, count in blocks for _ in range(int(count))]
  for item, start, shift in zip(row, starts, shifts, strict=True):
    item.x = start + shift


def _mean(block: list[float]) -> float:
  wish, weight, _ = block
  return wish / weight
