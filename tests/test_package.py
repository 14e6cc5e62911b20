"""The package stands without its checkout, and its imports run one way."""

import ast
import fnmatch
import functools
import graphlib
import pathlib
import pkgutil
import subprocess
import sys
import tempfile
import tomllib

from absl.testing import parameterized
import chex

import gpt2_flax
from gpt2_flax.doors import DOORS

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "gpt2_flax"
OUTSIDE = {"configs", "examples", "lessons", "benchmarks", "tests", *DOORS}
# Each may import what stands in the rows below its own, and from within itself.
ROWS = [row.split() for row in (
  "__main__",
  "doors",
  "interpret",
  "training",
  "writing",
  "generation pretrained",
  "hub datasets rows",
  "tokenizer transformer",
  "multihead_attention model_config",
  "self_attention",
  "positional_encoding registry",
  "layers",
  "files",
  "errors",
  "terminal",
)]  # fmt: skip


def module_of(path: pathlib.Path) -> str:
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in PACKAGE.rglob("*.py")}


def imports(path: pathlib.Path) -> set[str]:
  """The modules that a file imports, anywhere in it."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text("utf-8"))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path} imports relatively"
      names = {f"{node.module}.{alias.name}" for alias in node.names}
      found |= {name if name in MODULES else node.module for name in names}
  return found


@functools.cache
def all_imports() -> dict[str, set[str]]:
  """Of each module of the package."""
  return {module: imports(path) for module, path in MODULES.items()}


class ImportsTest(chex.TestCase):
  def test_nothing_outside_of_the_package(self):
    for module, imported in all_imports().items():
      firsts = {name.partition(".")[0] for name in imported}
      self.assertEqual(firsts & OUTSIDE, set(), module)

  def test_one_way(self):
    row_of = {name: number for number, row in enumerate(ROWS) for name in row}
    parts = {name.split(".")[1] for name in MODULES if "." in name}
    self.assertEqual(set(row_of), parts)
    for module, imported in all_imports().items():
      if module == "gpt2_flax":  # imports its parts when they are asked for
        self.assertEqual(imported, {"importlib", "pkgutil", "typing"})
        continue
      part = module.split(".")[1]
      theirs = {name.split(".")[1] for name in imported & MODULES.keys() if "." in name}
      for other in theirs - {part}:
        self.assertGreater(row_of[other], row_of[part], f"{module} imports {other}")

  def test_no_circle(self):
    inside = {module: found & MODULES.keys() for module, found in all_imports().items()}
    graphlib.TopologicalSorter(inside).prepare()  # raises CycleError


class WheelTest(chex.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))

  def test_commands_are_there(self):
    scripts = self.project["project"]["scripts"]
    self.assertIn("gpt2-flax", scripts)
    for target in scripts.values():
      self.assertTrue(callable(pkgutil.resolve_name(target)), target)

  def test_every_file_is_packaged(self):
    setuptools = self.project["tool"]["setuptools"]
    for path in PACKAGE.rglob("*"):
      if path.is_dir() or path.suffix == ".py" or "__pycache__" in path.parts:
        continue
      # data of the package that its folder is, or is in
      home = next(p for p in path.parents if (p / "__init__.py").exists())
      package = ".".join(home.relative_to(ROOT).parts)
      patterns = setuptools["package-data"].get(package, [])
      name = path.relative_to(home).as_posix()
      self.assertTrue(any(fnmatch.fnmatch(name, p) for p in patterns), path)


def call(*args: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, *args], capture_output=True, text=True, cwd=ROOT, check=False
  )


class PackageTest(chex.TestCase):
  def run_alone(self, code: str) -> None:
    """In a process that has imported nothing else."""
    done = call("-c", code)
    self.assertEqual(done.returncode, 0, done.stderr)

  def test_the_import_alone_is_quick(self):
    self.run_alone("import sys, gpt2_flax; sys.exit('jax' in sys.modules)")

  def test_submodules_and_parts_are_imported_when_asked_for(self):
    submodules = "datasets generation hub interpret pretrained tokenizer training"
    self.run_alone(
      "import gpt2_flax, types\n"
      f"for name in {submodules.split()}:\n"
      "  assert name in dir(gpt2_flax), name\n"
      "  assert isinstance(getattr(gpt2_flax, name), types.ModuleType), name\n"
      "for name in gpt2_flax.__all__:\n"
      "  assert name in dir(gpt2_flax), name\n"
      "  assert callable(getattr(gpt2_flax, name)), name\n"
    )

  def test_a_name_that_is_not_there(self):
    with self.assertRaisesRegex(AttributeError, "has no attribute 'attention'"):
      gpt2_flax.attention  # noqa: B018


class CommandTest(chex.TestCase):
  def test_lists_the_doors_at_once(self):
    listed = call("-X", "importtime", "-m", "gpt2_flax", "--help")
    self.assertEqual(listed.returncode, 0, listed.stderr)
    for name in DOORS:
      first = ast.get_docstring(
        ast.parse((PACKAGE / "doors" / f"{name}.py").read_text())
      )
      self.assertIn(first.splitlines()[0], listed.stdout)
    self.assertIn(" gpt2_flax.doors.command_line\n", listed.stderr)
    self.assertNotIn(" jax\n", listed.stderr)

  def test_is_the_door(self):
    helped = call("-m", "gpt2_flax", "train", "--help")
    self.assertIn("gpt2-flax train --workdir=runs/mine", helped.stdout)

  @parameterized.parameters(
    ("import no_such_module", "No module named 'no_such_module'"),
    ("def get_config(): return {}", "get_config must return a ConfigDict"),
  )
  def test_a_config_that_is_none_gives_one_line(self, content, message):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    config = pathlib.Path(folder) / "mine.py"
    config.write_text(content)
    bad = call("-m", "gpt2_flax", "train", f"--config={config}")
    self.assertEqual(bad.returncode, 2, bad.stderr)
    self.assertEqual(bad.stderr, f"error: --config={config}: {message}\n")

  @parameterized.parameters(
    ([], "error: name a door: train, sweep, sample, evaluate, explain, export; --h"),
    (["trian", "--workdir=x"], "error: unknown door 'trian': did you mean 'train'?"),
    (["sample", "--workdr=x"], "error: unknown flag '--workdr': did you mean"),
    (["sample", "--config=x"], "error: unknown flag '--config': "),
    (["sample", "--config.seed=1"], "error: unknown flag '--config.seed': "),
  )
  def test_bad_input_gives_one_line(self, args, message):
    bad = call("-m", "gpt2_flax", *args)
    self.assertEqual(bad.returncode, 2, bad.stderr)
    self.assertEqual(bad.stderr.count("\n"), 1, bad.stderr)
    self.assertStartsWith(bad.stderr, message)
    self.assertEqual(bad.stdout, "")
