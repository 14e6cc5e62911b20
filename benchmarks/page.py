"""The page of a run: its size, and how long it takes to follow a change.

    python -m benchmarks.page --workdir=runs/playback

The page is made as explain.py makes it and opened in a headless Chromium. Then one
token of its text is changed again and again: the median is of the whole change, the
layout included, and of the forward pass alone. PROMPT is the run's own validation text.
"""

import pathlib
import statistics
import subprocess
import sys
import tempfile

from absl import app, flags, logging
from playwright import sync_api

from tests.interpret.browser import launch

_WORKDIR = flags.DEFINE_string(
  "workdir", "runs/playback", "A run that explain.py can show."
)
_CHANGES = flags.DEFINE_integer("changes", 101, "How many are timed.")

HERE = pathlib.Path(__file__).parents[1]
TIME = """(changes) => {
  const whole = [], forward = [], { tokens } = inside.view;
  const place = Math.floor(tokens.length / 2);
  for (let i = 0; i < changes; i++) {
    const changed = tokens.with(place, 1 + (tokens[place] + i) % 20);
    let began = performance.now();
    inside.select({ tokens: changed });
    document.body.getBoundingClientRect();  // the layout
    whole.push(performance.now() - began);
    began = performance.now();
    inside.trace(changed);
    forward.push(performance.now() - began);
  }
  return [whole, forward, tokens.length];
}"""


def main(_) -> None:
  """Makes the page, times it, prints a line for each figure."""
  logging.set_verbosity(logging.ERROR)
  with (
    tempfile.TemporaryDirectory() as folder,
    sync_api.sync_playwright() as playwright,
  ):
    file = pathlib.Path(folder) / "page.html"
    subprocess.run(
      [sys.executable, "explain.py", f"--workdir={_WORKDIR.value}", f"--output={file}"],
      cwd=HERE,
      check=True,
    )
    page = launch(playwright).new_page(viewport={"width": 1200, "height": 900})
    page.goto(file.as_uri())
    whole, forward, length = page.evaluate(TIME, _CHANGES.value)
    print(f"{file.stat().st_size / 1e6:.2f} MB, a text of {length} tokens")
  for name, times in (("a change", whole), ("its forward pass", forward)):
    quick, middle = min(times), statistics.median(times)
    print(f"{name:17}{middle:6.1f} ms (median of {len(times)}; at least {quick:.1f})")


if __name__ == "__main__":
  app.run(main)
