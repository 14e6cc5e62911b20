"""The lessons as a course: their prose, their notebooks, and the page they make."""

import contextlib
import io
import pathlib
import re
import sys
import tempfile
import types
from unittest import mock

from absl.testing import parameterized
import chex

from gpt2_flax.errors import InputError
from lessons import __main__ as door
from lessons import LESSONS, order, outcomes, prose
from tests.lessons.stubs import small_report

EACH = parameterized.parameters(*[(name,) for name in LESSONS])
NOTEBOOK = '''\
# %% [markdown]
# # Coins
#
# A coin.
#
# **What do you expect?** Heads?

# %%
"""Teaches."""
CLAIM = "Heads"

# %% [markdown]
# ## Tossing

# %%
#  a remark
run()

# %% [markdown]
# ## The verdict
#
# Tails.
#
#     code

# %% [markdown]
# ## Exercise
#
# Toss.

# %% [markdown]
# ## Answer
#
# Heads.
'''


def printed(call, *args):
  text = io.StringIO()
  with contextlib.redirect_stdout(text):
    call(*args)
  return text.getvalue()


class ProseTest(chex.TestCase):
  def read(self, source):
    with tempfile.TemporaryDirectory() as folder:
      (pathlib.Path(folder) / "coins.py").write_text(source)
      with mock.patch.object(prose, "FOLDER", pathlib.Path(folder)):
        return prose.read("coins")

  def test_cells(self):
    found = prose.cells(f"import this\n\n{NOTEBOOK}")
    self.assertEqual([cell.markdown for cell in found], [0, 1, 0, 1, 0, 1, 1, 1])
    self.assertEqual(found[0].text, "import this")
    self.assertEqual(found[4].text, "#  a remark\nrun()")
    self.assertEqual(found[5].text, "## The verdict\n\nTails.\n\n    code")

  def test_parts(self):
    read = self.read(NOTEBOOK)
    self.assertEqual(read.title, "Coins")
    story = "A coin.\n\n**What do you expect?** Heads?\n\n## Tossing"
    self.assertEqual(read.story, story)
    self.assertEqual(read.verdict, "## The verdict\n\nTails.\n\n    code")
    self.assertEqual(read.exercise, "## Exercise\n\nToss.")
    self.assertEqual(read.answer, "## Answer\n\nHeads.")

  @parameterized.parameters(
    ("# **What do you expect?** Heads?", "#"),  # none
    ("# ## Tossing", "# ## Answer"),  # two
  )
  def test_refuses(self, before, after):
    with self.assertRaisesRegex(ValueError, "lessons/coins.py: must have, once and in"):
      self.read(NOTEBOOK.replace(before, after))

  def test_refuses_another_order(self):
    head, verdict, exercise, answer = NOTEBOOK.rsplit("\n\n# %% [markdown]\n", 3)
    parts = (head, exercise, verdict, answer)
    with self.assertRaisesRegex(ValueError, "in this order, # , "):
      self.read("\n\n# %% [markdown]\n".join(parts))


class NotebookTest(chex.TestCase):
  """Each lesson, cell by cell as a notebook runs it, but with nothing measured."""

  def run_cells(self, name, display=None):
    """The names it leaves behind; `display` is the notebook's."""
    names = {"__name__": "__main__"}
    found = prose.cells((prose.FOLDER / f"{name}.py").read_text("utf-8"))
    *others, last = [cell.text for cell in found if not cell.markdown]
    [place] = [i for i, cell in enumerate(found) if cell.text == last]
    self.assertStartsWith(found[place + 1].text, prose.VERDICT)
    self.assertTrue(all(cell.markdown for cell in found[place + 1 :]))
    self.assertTrue(found[0].markdown)
    for text in others:
      exec(compile(text, name, "exec"), names)
    self.assertTrue(callable(names["run"]))
    names["run"] = lambda: small_report(True, False)
    notebook = types.SimpleNamespace(
      get_ipython=lambda: display,
      display=types.SimpleNamespace(display=display),
      version_info=(9, 0),  # matplotlib asks
    )
    with mock.patch.dict(sys.modules, {"IPython": notebook}):
      exec(compile(last, name, "exec"), names)

  @EACH
  def test_runs(self, name):
    text = printed(self.run_cells, name)
    self.assertIn("Title:\n\n| layers |", text)
    self.assertIn("- does not hold: figure 1\n", text)

  def test_shows_tables_and_picture_inline(self):
    display = mock.Mock()
    self.assertEqual(printed(self.run_cells, "order", display), "")
    [text, picture] = [call.args[0] for call in display.call_args_list]
    for line in ("Title:", "- holds: figure 0", "- does not hold: figure 1"):
      self.assertIn(f"{line}\n", text["text/markdown"])
    self.assertStartsWith(picture["image/png"], b"\x89PNG")

  @EACH
  def test_prose_is_for_a_notebook_too(self, name):
    """Cells that begin with their heading, and lines that fit a terminal."""
    found = prose.cells((prose.FOLDER / f"{name}.py").read_text("utf-8"))
    starts = [cell.text.split("\n")[0] for cell in found if cell.markdown]
    for heading in (prose.VERDICT, prose.EXERCISE, prose.ANSWER):
      self.assertEqual(starts.count(heading), 1)
    self.assertEqual(starts[-1], prose.ANSWER)
    self.assertStartsWith(found[0].text.split("\n\n")[-1], prose.QUESTION)
    read = prose.read(name)
    self.assertRegex(read.answer, r"\d")  # what was measured


class PageTest(chex.TestCase):
  def test_is_what_the_lessons_and_their_outcomes_say(self):
    """Else: python -m lessons --write."""
    self.assertEqual(door.PAGE.read_text("utf-8"), door.page())

  @EACH
  def test_links_lead_somewhere(self, name):
    page = door.PAGE.read_text("utf-8")
    self.assertIn(f"[{name}](#{name})", page)
    self.assertIn(f'<a id="{name}"></a>', page)
    for link in re.findall(r"\]\((?!http|#)([^)]+)\)", page):
      self.assertTrue((prose.FOLDER / link).exists(), link)

  def test_says_what_came_out(self):
    with (
      mock.patch.object(door, "LESSONS", ("order", "limit")),
      mock.patch.object(
        door,
        "kept",
        lambda name: (small_report(True, False), 41.6) if name == "order" else None,
      ),
    ):
      page = door.page()
    self.assertIn(f"| {order.CLAIM} | does not hold | 42 s |", page)
    self.assertIn("- does not hold: figure 1\n\n![", page)
    self.assertIn("(outcomes/order.png)\n\nTitle:\n\n| layers", page)
    self.assertIn("| not measured yet | 140 s |", page)
    self.assertNotIn("outcomes/limit.png", page)
    at = [
      page.index(text)
      for text in (
        "# A course",
        "## Words",
        "## The path",
        "## 1. Order",
        prose.QUESTION,
        "### What came out",
        "figure 0",
        "### The verdict",
        "### Exercise",
        "<details><summary>Answer</summary>\n\nBoth, at all depths.",
        "</details>",
        "## 2. The limit",
      )
    ]
    self.assertEqual(at, sorted(at))


class DoorTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enter_context(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)
    for module, name, value in (
      (door, "PICTURES", self.folder / "pictures"),
      (door, "PAGE", self.folder / "README.md"),
      (outcomes, "FOLDER", self.folder / "outcomes"),
      (door, "LESSONS", ("order", "limit")),
      (door, "load", self.load),
    ):
      self.enter_context(mock.patch.object(module, name, value))

  def load(self, name):
    lesson = mock.Mock(CLAIM=f"{name}'s claim", SECONDS=5, __doc__=f"Of {name}.\n\n-")
    lesson.run.side_effect = lambda: small_report(True, name == "order")
    return lesson

  def files(self):
    return sorted(
      str(path.relative_to(self.folder))
      for path in self.folder.rglob("*")
      if path.is_file()
    )

  def test_the_path(self):
    words, path = printed(door.main, []).split("\n 1 ")
    self.assertIn("**Softmax**".lower(), words.lower())
    self.assertRegex(f" 1 {path}", r"^ 1 order +5 s  Of order.\n 2 limit +5 s  Of l")
    self.assertEqual(self.files(), [])

  def test_tells_a_lesson_in_order_and_not_its_answer(self):
    text = printed(door.main, ["limit"])
    read = prose.read("limit")
    parts = (
      f"# {read.title}",
      read.story,
      "| 12 ",
      "- does not hold: figure 1\n",
      "limit.png",
      '"limit\'s claim": the claim does not hold.',
      read.verdict,
      read.exercise,
      "at the end of lessons/limit.py",
    )
    at = [text.index(part) for part in parts]
    self.assertEqual(at, sorted(at))
    self.assertNotIn(read.answer, text)
    self.assertEqual(self.files(), ["pictures/limit.png"])  # and nothing else

  def test_keeps_what_it_is_told_to(self):
    printed(door.main, ["order", "--write"])
    kept = ["README.md", "outcomes/order.json", "outcomes/order.png"]
    self.assertEqual(self.files(), kept)
    report, seconds = outcomes.kept("order")
    self.assertEqual(report.markdown_tables(), small_report().markdown_tables())
    self.assertEqual(report.findings, small_report(True, True).findings)
    self.assertBetween(seconds, 0.0, 60.0)
    self.assertIn("order's claim | holds |", door.PAGE.read_text())
    self.assertIsNone(outcomes.kept("limit"))

  def test_all(self):
    text = printed(door.main, ["--write", "all"])
    self.assertLess(text.index("# Order"), text.index("# The limit"))
    self.assertLen(self.files(), 5)
    self.assertIn("limit's claim | does not hold |", door.PAGE.read_text())

  @parameterized.parameters(
    (["ordr"], "unknown lesson 'ordr': did you mean 'order'"),
    (["order", "all"], "give one lesson"),
    (["--wirte"], "unknown lesson"),
  )
  def test_refuses(self, args, message):
    with self.assertRaisesRegex(InputError, message):
      door.main(args)
