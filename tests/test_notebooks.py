"""The tour runs as it stands, shows what it should, and is stored without outputs."""

import ast
import os
import pathlib
import re
import tempfile

import chex
from nbclient import NotebookClient
import nbformat
import pytest

from gpt2_flax.tokenizer import BPETokenizer
from tests import snippets
from tests.test_readme import write_small

ROOT = pathlib.Path(__file__).parent.parent
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(path: pathlib.Path) -> nbformat.NotebookNode:
  return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


class StoredTest(chex.TestCase):
  def test_outputs_are_not_stored(self):
    self.assertEqual([path.name for path in PATHS], ["tour.ipynb"])
    for path in PATHS:
      notebook = read(path)
      nbformat.validate(notebook)
      for cell in code_cells(notebook):
        self.assertEqual((cell.outputs, cell.execution_count), ([], None), cell.source)

  def test_links_lead_somewhere(self):
    text = "\n".join(cell.source for cell in read(PATHS[0]).cells)
    for path in re.findall(r"\]\((\.\.[^)#]+)\)", text):
      self.assertTrue((PATHS[0].parent / path).exists(), path)
    [badge] = re.findall(r"google.com/github/(.*?/gpt2_flax)/blob/main/(.*?)\)", text)
    [installed] = re.findall(r"git\+https://github.com/(.*)", text)
    self.assertEqual(badge, (installed, "notebooks/tour.ipynb"))


class CellsTest(chex.TestCase):
  """What would break most often, in a moment."""

  def setUp(self):
    super().setUp()
    sources = [cell.source for cell in code_cells(read(PATHS[0]))]
    self.cells = [re.sub(r"(?m)^( *)%.*", r"\1pass", text) for text in sources]

  def test_each_compiles_and_knows_its_names(self):
    snippets.check(["def display(picture): ...", *self.cells])

  def test_what_is_plotted_is_shown(self):
    for cell in self.cells:
      tree = ast.parse(cell)
      shown = [tree.body[-1].value] if isinstance(tree.body[-1], ast.Expr) else []
      for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call)]:
        shown += call.args if ast.unparse(call.func) == "display" else []
      for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call)]:
        if ast.unparse(call.func) in ("interpret.plot_attention", "interpret.show"):
          self.assertIn(call, shown, cell)


@pytest.mark.slow
class TourTest(chex.TestCase):
  def test_runs_and_shows_a_picture_for_each_question(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    write_small(f"{folder}/gpt2", BPETokenizer.train(["Mary and John went"], 270))
    notebook = read(PATHS[0])
    [parameters] = [c for c in code_cells(notebook) if "tags" in c.metadata]
    parameters.source = f"num_steps = 8\ngpt2_source = {folder + '/gpt2'!r}"
    environment = {"PYTHONPATH": str(ROOT), "IPYTHONDIR": folder}
    client = NotebookClient(notebook, timeout=600, kernel_name="python3")
    client.execute(cwd=folder, env=os.environ | environment)

    said = ""
    for cell in code_cells(notebook):
      kinds = set()
      for output in cell.outputs:
        kinds |= output.get("data", {}).keys()
        said += output.get("text", "")
      for call, kind in (
        ("plt.", "image/png"),
        ("plot_attention(", "image/png"),
        ("Image(", "image/png"),
        ("SVG(", "image/svg+xml"),
        ("interpret.show(", "text/html"),
      ):
        if call in cell.source:
          self.assertIn(kind, kinds, cell.source)

    errors = [float(x) for x in re.findall(r"off by (\S+)", said)]
    self.assertLen(errors, 2)
    self.assertLess(max(errors), 1e-5)
    shuffled = [float(x) for x in re.findall(r"with(?:out)? positions +(\S+)", said)]
    self.assertLess(shuffled[0], 1e-6)
    self.assertGreater(shuffled[1], 1e-4)
    self.assertIn("done: 8 steps", said)
    self.assertLen(re.findall(r"^(?:whole|cut) +the \w", said, re.MULTILINE), 2)
    self.assertLen(re.findall(r"^ *[0-9.]+% '", said, re.MULTILINE), 5)
