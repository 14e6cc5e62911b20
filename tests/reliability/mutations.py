"""Damage with a purpose: bytes, JSON and safetensors that must not be believed."""

import copy
import itertools
import json
import random as random_module
import struct
from typing import Any

Random = random_module.Random

# What a number, a text, a list or an object in a JSON file is replaced with.
VALUES = (
  *(0, -1, 1, 2, 3, 1000, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64, 10**400),
  *(-(2**31), -(2**63), 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf")),
  *(True, False, None, "", " ", "\0", "a" * 100_000, "\x1b]0;t\x07", "\u202e\u2028"),
  *("\ud800", "../../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "C:\\x"),
  *("__class__", "{{7*7}}", "${x}", "%s%n", "'; import os", "model.safetensors"),
  *([], {}, [[]], [0] * 10_000, ["a", "a"], {"": ""}, {"type": None}, {"a": -1}),
)
# Text that no JSON writer would write.
RAW = (
  *("NaN", "-Infinity", "1e999", "-" + "9" * 5000, "9" * 4000, '"\\ud800"', '"\\0"'),
  *("[" * 100_000, '{"a":' * 50_000, "[" * 900 + "]" * 900, "[" * 60 + "]" * 60, "'a'"),
  *('{"a":1,"a":2}', "1,", "//", "\ufeff", "0x10", "01", "+1", "nul", '"\t"', ""),
)
SIZES = (0, 1, 7, 8, 255, 2**16, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)


def of_bytes(content: bytes, random: Random) -> bytes:
  """A few bits, bytes or pieces changed, put in, left out or cut off."""
  content = bytearray(content)
  for _ in range(random.choice((1, 1, 2, 8))):
    at = random.randrange(len(content) + 1)
    end = min(len(content), at + random.choice((1, 2, 8, 64, 4096)))
    match random.randrange(8):
      case 0 if at < len(content):
        content[at] ^= 1 << random.randrange(8)
      case 1:
        content[at:end] = random.randbytes(end - at)
      case 2:
        content[at:at] = random.randbytes(random.choice((1, 8, 100)))
      case 3:
        del content[at:end]
      case 4:
        del content[at:]
      case 5:
        content[at:at] = content[at:end] * random.choice((1, 2, 50))
      case 6:
        content[at : at + 8] = struct.pack("<Q", random.choice(SIZES))
      case 7:
        content[at:end] = random.choice((b"\0", b"\xff", b'"', b"}", b"9")) * (end - at)
  return bytes(content)


def of_json(values: Any, random: Random, more: tuple = ()) -> bytes:
  """A few places of some JSON values replaced, left out, renamed or said twice."""
  values, raw = json.loads(json.dumps([values])), {}
  for _ in range(random.choice((1, 1, 1, 2, 4))):
    places = list(itertools.islice(_places(values), 2000))
    if not places:
      break
    holder, key = random.choice(places)
    match random.randrange(8):
      case 0 | 1 | 2:
        holder[key] = copy.deepcopy(random.choice(VALUES))
      case 3 if more:
        holder[key] = copy.deepcopy(random.choice(more))
      case 4:
        del holder[key]
      case 5:
        holder[key] = f"raw {len(raw)}"
        raw[f'"raw {len(raw)}"'] = random.choice(RAW)
      case 6 if isinstance(holder, dict):
        holder[str(random.choice(VALUES))[:5000]] = holder.pop(key)
      case 6 | 7:
        other, other_key = random.choice(places)
        if other_key in other if isinstance(other, dict) else other_key < len(other):
          holder[key] = json.loads(json.dumps(other[other_key]))
  text = json.dumps(values, ensure_ascii=random.random() < 0.5)[1:-1]
  for mark, instead in raw.items():
    text = text.replace(mark, instead)
  return text.encode("utf-8", "surrogatepass")


def large_json(size: int, random: Random) -> bytes:
  """As many small values as a file of that size may have."""
  key = random.choice((b"model", b"normalizer", b"words", b"weight_map", b"n_layer"))
  one = random.choice((b"[]", b"{}", b'"a"', b"0", b"[[1]]"))
  count = (size - 100) // (len(one) + 1)
  return b'{"%s":[' % key + b",".join([one] * count) + b"]}"


def _places(values: Any, depth: int = 20):
  """(holder, key) of every value within, of what is long or deep but some."""
  keys = values.keys() if isinstance(values, dict) else range(len(values))
  for key in list(keys)[:100]:
    yield values, key
    if depth and isinstance(values[key], (dict, list)):
      yield from _places(values[key], depth - 1)


def of_safetensors(content: bytes, random: Random) -> bytes:
  """Another header over the same values, or another length of it."""
  size = int.from_bytes(content[:8], "little")
  try:
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
  except (ValueError, RecursionError):
    header = None
  if not isinstance(header, dict):  # damaged before
    return of_bytes(content, random)
  more = (
    *([0, 2**63], [2**63, 2**64 - 1], [8, 4], [-8, 0], [0, 0], [0, len(body) + 1]),
    *([2**32, 2**32], [2**62, 4], [-1], [1] * 5000, [len(body)], [0, 2**40]),
    *("F4", "F8_E4M3", "BF16", "F16", "F64", "I64", "BOOL", "U8", "C64", "X", ""),
    *(random.choice([*header.values(), {}]), {"dtype": "F32"}),
  )
  text = of_json(header, random, more)
  length = len(text) if random.random() < 0.9 else random.choice(SIZES)
  match random.randrange(6):
    case 0:
      body = body[: random.randrange(len(body) + 1)]
    case 1:
      body += b"\0" * random.choice((1, 8, 10_000))
  return struct.pack("<Q", length) + text + body
