"""Puts the page together: one file that loads nothing else."""

import base64
import hashlib
import json
import pathlib
from typing import Any

import jinja2

from gpt2_flax.interpret.control_flow import control_flow_svg
from gpt2_flax.model_config import GPT2Config

_FOLDER = pathlib.Path(__file__).parent / "web"
_SCRIPTS = (  # in this order: what a script needs at once comes before it
  "arrays.js",
  "model.js",
  "languages.js",
  "reading.js",
  "sampling.js",
  "tokenizer.js",
  "drawing.js",
  "view.js",
  "text.js",
  "surgery.js",
  "playback.js",
  "attention.js",
  "weights.js",
  "stream.js",
  "next.js",
  "main.js",
)
# Characters that could end a script, or that JavaScript and HTML read differently.
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def render_page(data: dict[str, Any], config: GPT2Config) -> str:
  """The HTML of `page_data`'s values.

  A content security policy allows the script and the styles in the page by their
  hashes, and nothing else. Data come as JSON, and the script shows them as text nodes.
  """
  script = "\n".join((_FOLDER / name).read_text("utf-8") for name in _SCRIPTS)
  script = f'"use strict";\n(() => {{\n{script}\n}})();\n'
  style = (_FOLDER / "style.css").read_text("utf-8")
  diagram = control_flow_svg(config)
  diagram_style = diagram.partition("<style>")[2].partition("</style>")[0]
  policy = (
    "default-src 'none'; base-uri 'none'; form-action 'none';"
    f" script-src {_hash(script)}; style-src {_hash(style)} {_hash(diagram_style)}"
  )
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
  )
  return environment.get_template("template.html").render(
    policy=policy,
    title=data["title"],
    style=style,
    script=script,
    diagram=diagram,
    data=json.dumps(data, allow_nan=False).translate(_ESCAPES),
  )


def _hash(text: str) -> str:
  digest = hashlib.sha256(text.encode("utf-8")).digest()
  return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
