"""Pieces of different lengths, put into rows of one length with little room left."""

import bisect
from collections.abc import Sequence


def pack(sizes: Sequence[int], capacity: int) -> list[list[int]]:
  """Which pieces go into which row: best fit, the longest first.

  Each piece goes into the row where it leaves the least room, or opens a new one:
  "Fewer Truncations Improve Language Modeling" (Ding et al., 2024), algorithm 1.

  Args:
    sizes: of the pieces, each 1 to capacity.
    capacity: of a row.

  Returns:
    Numbers of pieces, ascending in each row; the rows are in the order of their first
    pieces.
  """
  rows: list[list[int]] = []
  with_room: dict[int, list[int]] = {}  # by what is left in them, the rows
  rooms: list[int] = []  # the keys of with_room, ascending
  for piece in sorted(range(len(sizes)), key=lambda piece: -sizes[piece]):
    best = bisect.bisect_left(rooms, sizes[piece])
    if best == len(rooms):
      room, row = capacity, len(rows)
      rows.append([])
    else:
      room = rooms[best]
      row = with_room[room].pop()
      if not with_room[room]:
        del with_room[room], rooms[best]
    rows[row].append(piece)
    left = room - sizes[piece]
    if left not in with_room:
      bisect.insort(rooms, left)
    with_room.setdefault(left, []).append(row)
  return sorted(sorted(row) for row in rows)
