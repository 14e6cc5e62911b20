"""Draws laid-out steps as an SVG that is light or dark as its reader's screen is."""

from html import escape

from gpt2_flax.interpret.flow_layout import (
  Arrow,
  Box,
  CORNER,
  GAP,
  HALF_CIRCLE,
  Item,
  PAD,
)

STYLE = """
.flow{--ink:#1c2430;--soft:#596474;--line:#8a94a3;--paper:#fff;--box:#f5f6f8;--edge:#cbd2db;
--trained:#dfebfa;--trained-edge:#6f9ccf;--stream:#cf6a00}
@media(prefers-color-scheme:dark){.flow{--ink:#e8ebf0;--soft:#a3adbb;--line:#77828f;
--paper:#14181e;--box:#1b2027;--edge:#3a434f;--trained:#18304c;--trained-edge:#4f87c2;
--stream:#f0953a}}
.flow text{font:13px system-ui,sans-serif;fill:var(--ink)}
.flow .note{font-size:11px;fill:var(--soft)}
.flow .shape,.flow .module{font:11px ui-monospace,Menlo,Consolas,monospace;
fill:var(--soft)}
.flow .module{font-size:12px;font-weight:600}
.flow .title{font-size:19px;font-weight:600}
.flow rect,.flow circle{fill:var(--paper);stroke:var(--line);stroke-width:1.2}
.flow .box{fill:var(--box);stroke:var(--edge)}
.flow .trained{fill:var(--trained);stroke:var(--trained-edge)}
.flow .paper{fill:var(--paper);stroke:none}
.flow path{fill:none;stroke:var(--line);stroke-width:1.4}
.flow .stream{stroke:var(--stream);stroke-width:3.2}
.flow circle{stroke:var(--stream);stroke-width:2}
.flow .tip{fill:var(--line);stroke:none}
.flow .stream-tip{fill:var(--stream);stroke:none}
"""


def draw(steps: list, title: str, legend: list[str]) -> str:
  """The SVG of `control_flow.Step`s, the last of which has the result."""
  box = Box(None, steps, steps)
  parts: list[str] = []
  _draw_box(box, 0, 0, parts)
  width, height = round(box.width), round(box.height + 8)
  parts.append(_text(width - PAD, 40, title, "title", "end"))
  for number, line in enumerate(legend):
    parts.append(_text(width - PAD, 66 + 18 * number, line, "note", "end"))
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" class="flow" role="img" width="{width}"'
    f' height="{height}" viewBox="0 0 {width} {height}">\n'
    f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n"
    '<rect class="paper" width="100%" height="100%"/>\n'
    + "\n".join(parts)
    + "\n</svg>\n"
  )


def _draw_box(box: Box, x: float, y: float, parts: list[str]) -> None:
  if box.module is not None:
    if box.module.axis:
      for offset in (8, 4):
        parts.append(_rectangle(x + offset, y + offset, box.width, box.height, "box"))
    parts.append(_rectangle(x, y, box.width, box.height, "box"))
    parts.append(_text(x + box.width - 10, y + 18, box.module.title, "module", "end"))
  for arrow in sorted(box.arrows, key=lambda arrow: arrow.is_stream):
    _draw_arrow(arrow, box, x, y, parts)
  for item in box.items:
    left, top = x + item.x - item.width / 2, y + item.y
    if isinstance(item.content, Box):
      _draw_box(item.content, left, top, parts)
    else:
      _draw_step(item, left, top, parts)
    _draw_shape(item, x, y, parts)


def _draw_shape(item: Item, x: float, y: float, parts: list[str]) -> None:
  """The array's axes, where it leaves a step or is stacked by `nn.vmap`."""
  shape, right, below = "", x + item.x + 7, y + item.y + item.height + 15
  if not isinstance(item.content, Box):
    shape = "" if item.beside else item.content.shape
  elif item.content.module.axis:
    ((step, port),) = item.content.exits.items()
    shape = item.content.module.axis + step.shape
    right, below = right + port.x - item.width / 2, below + 8
  if shape:
    parts.append(_text(right, below, f"[{', '.join(shape)}]", "shape"))


def _draw_step(item: Item, left: float, top: float, parts: list[str]) -> None:
  step = item.content
  middle = left + item.width / 2
  if step.label == "+":
    centre = top + HALF_CIRCLE
    parts.append(f'<circle cx="{middle:.1f}" cy="{centre:.1f}" r="{HALF_CIRCLE}"/>')
    parts.append(_text(middle, centre + 5, "+", "", "middle"))
    return
  kind = "trained" if step.trained else ""
  parts.append(_rectangle(left, top, item.width, item.height, kind))
  parts.append(_text(middle, top + 19, step.label, "", "middle"))
  if step.note:
    parts.append(_text(middle, top + 35, step.note, "note", "middle"))


def _draw_arrow(arrow: Arrow, box: Box, x: float, y: float, parts: list[str]) -> None:
  points, tip = _route(arrow, box)
  points = [(x + right, y + down) for right, down in points]
  kind = ' class="stream"' if arrow.is_stream else ""
  parts.append(f'<path{kind} d="{_rounded(points)}"/>')
  if tip:
    parts.append(_tip(*points[-1], tip, arrow.is_stream))


def _route(arrow: Arrow, box: Box) -> tuple[list[tuple[float, float]], str]:
  """The corners of an arrow in its box, and where its tip points: "" for no tip.

  It goes down, across in the gap between two rows, and down; into a step that reads
  several arrays it goes from the side that it comes from.
  """
  source, target = arrow.source, arrow.target
  middle = target.y + target.height / 2
  if source.beside:
    ends = source.x + source.width / 2, target.x - target.width / 2
    return [(ends[0], middle), (ends[1], middle)], "right"
  points = [(source.x + source.port(arrow.step, False), source.y + source.height)]
  is_step = target.content is not None and not isinstance(target.content, Box)
  is_end = box.module is None and target in box.exits.values()
  reads_more = sum(other.target is target for other in box.arrows) > 1
  for item in [*arrow.via, target]:
    x, at = points[-1][0], item.x + item.port(arrow.step, True)
    if abs(at - x) > 0.5 and item is target and is_step and reads_more:
      side = 1 if x > at else -1
      points += [(x, middle), (at + side * target.width / 2, middle)]
      return points, "left" if side > 0 else "right"
    if abs(at - x) > 0.5:
      above = max(i.y + i.height for i in box.rows[item.row - 1])
      across = above + 0.62 * GAP
      points += [(x, across), (at, across)]
    points.append((at, item.y))
  return points, "down" if is_step or is_end else ""


def _rounded(points: list[tuple[float, float]]) -> str:
  """An SVG path through points, with its corners rounded."""
  path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
  for (x0, y0), (x1, y1), (x2, y2) in zip(points, points[1:], points[2:], strict=False):
    before, after = abs(x1 - x0) + abs(y1 - y0), abs(x2 - x1) + abs(y2 - y1)
    r = min(CORNER, before / 2, after / 2)
    if not before or not after:
      continue
    ax, ay = x1 - (x1 - x0) / before * r, y1 - (y1 - y0) / before * r
    bx, by = x1 + (x2 - x1) / after * r, y1 + (y2 - y1) / after * r
    path += f"L{ax:.1f} {ay:.1f}Q{x1:.1f} {y1:.1f} {bx:.1f} {by:.1f}"
  return path + f"L{points[-1][0]:.1f} {points[-1][1]:.1f}"


def _tip(x: float, y: float, towards: str, is_stream: bool) -> str:
  size = 6.0 if is_stream else 4.5
  dx, dy = {"down": (0, -1), "left": (1, 0), "right": (-1, 0)}[towards]
  back = (x + 2 * size * dx, y + 2 * size * dy)
  corners = [
    (x, y),
    (back[0] + size * dy, back[1] + size * dx),
    (back[0] - size * dy, back[1] - size * dx),
  ]
  d = "L".join(f"{cx:.1f} {cy:.1f}" for cx, cy in corners)
  return f'<path class="{"stream-" if is_stream else ""}tip" d="M{d}Z"/>'


def _rectangle(x: float, y: float, width: float, height: float, kind: str) -> str:
  name = f' class="{kind}"' if kind else ""
  sides = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
  return f'<rect{name} {sides} rx="7"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
  name = f' class="{kind}"' if kind else ""
  return (
    f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
  )
