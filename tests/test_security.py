"""What SECURITY.md promises, in the source: nothing here turns data into code."""

import pathlib
import re

import chex

ROOT = pathlib.Path(__file__).parents[1]
# Ways in which content becomes code, or reaches a shell. Flags and configs are the
# user's own; lessons and benchmarks read what they made.
FORBIDDEN = re.compile(
  r"pickle|marshal|shelve|dill|yaml|trust_remote_code|allow_pickle"
  r"|torch\.load|np\.load\(|numpy\.load\(|\beval\(|\bexec\(|\bcompile\(.*['\"]exec"
  r"|os\.system|os\.popen|shell=True|__import__|import_module|\|\s*safe\b"
)
ALLOWED = {
  # of this package's own parts, by the names that it exports
  "gpt2_flax/__init__.py": {"import_module"},
  # of a module that the person names on the command line
  "gpt2_flax/doors/own_modules.py": {"import_module"},
  # of a door, by its name in a list
  "gpt2_flax/__main__.py": {"import_module"},
  # it says of pickles that they are not read
  "gpt2_flax/hub/folder.py": {"pickle"},
  "gpt2_flax/pretrained.py": {"pickle", "Pickle"},
  # of this project's own files, with their hash in the page's policy
  "gpt2_flax/interpret/page/web/template.html": {"| safe"},
}


class SourceTest(chex.TestCase):
  def test_nothing_turns_data_into_code(self):
    doors = list(ROOT.glob("*.py"))
    files = [p for p in (ROOT / "gpt2_flax").rglob("*") if p.suffix in (".py", ".html")]
    self.assertGreater(len(files), 40)
    for path in doors + files:
      name = path.relative_to(ROOT).as_posix()
      found = set(FORBIDDEN.findall(path.read_text("utf-8")))
      self.assertEqual(found - ALLOWED.get(name, set()), set(), name)
