"""Parts by name: none is replaced in silence, and each says where it is from."""

import collections
import functools
import importlib.util
import pathlib
import sys
import tempfile

import chex
from flax import linen as nn

from gpt2_flax.errors import InputError
from gpt2_flax.registry import origin, Registry
from gpt2_flax.self_attention import HEADS, SelfAttention

HERE = pathlib.Path(__file__)
CODE = """
import functools

class Part:
  def __call__(self):
    return 1

class Bare:
  size = 3

def function():
  return 1

@functools.wraps(function)
def wrapped():
  return function()
"""


class Head(SelfAttention):
  def scores(self, query_BTK, key_BSK):
    return -super().scores(query_BTK, key_BSK)


class OtherHead(SelfAttention):
  def scores(self, query_BTK, key_BSK):
    return 2 * super().scores(query_BTK, key_BSK)


def load(path: pathlib.Path, name: str):
  """The module of a file, made anew, under some name."""
  spec = importlib.util.spec_from_file_location(name, path)
  module = sys.modules[name] = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


class RegistryTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.registry = Registry("model.attention", {"ours": SelfAttention})

  def test_is_a_mapping(self):
    self.assertIs(self.registry.add("mine", Head), Head)
    self.assertEqual(dict(self.registry), {"ours": SelfAttention, "mine": Head})
    self.assertLen(self.registry, 2)
    self.assertIn("mine", self.registry)
    self.assertNotIn("yours", self.registry)

  def test_an_unknown_name_is_told_the_nearest(self):
    message = "unknown model.attention 'our': did you mean 'ours'"
    for ask in (self.registry.__getitem__, self.registry.needs):
      with self.assertRaisesRegex(InputError, message):
        ask("our")

  def test_a_part_is_not_replaced_by_another(self):
    self.registry.add("mine", Head)
    for name, known in (("ours", "self_attention:Self"), ("mine", "registry.*:Head")):
      with self.assertRaisesRegex(InputError, f"'{name}' is there already: .*{known}"):
        self.registry.add(name, OtherHead)
    self.assertEqual(dict(self.registry), {"ours": SelfAttention, "mine": Head})

  def test_the_same_part_may_come_again_from_a_reload(self):
    self.registry.add("mine", Head)
    again = load(HERE, "loaded_again").Head
    self.addCleanup(sys.modules.pop, "loaded_again")
    self.assertIsNot(again, Head)
    self.registry.add("mine", again)
    self.assertIs(self.registry["mine"], again)

  def test_needs_what_is_not_ours(self):
    self.assertEqual({HEADS.needs(name) for name in ("explicit", "flash")}, {""})
    self.registry.add("mine", Head)
    self.assertEqual(self.registry.needs("mine"), origin(Head))
    self.assertRegex(origin(Head), r"test_registry(\.py)?:Head$")
    self.registry.add("flaxs", nn.Dense)
    self.assertEqual(self.registry.needs("flaxs"), "flax.linen.linear:Dense")


class OriginTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def module(self, name: str, at: str | None = None):
    path = self.folder / f"{at or name}.py"
    path.write_text(CODE)
    self.addCleanup(sys.modules.pop, name)
    return load(path, name), str(path)

  def test_what_python_finds_by_name_is_named(self):
    self.assertEqual(origin(SelfAttention), "gpt2_flax.self_attention:SelfAttention")
    self.assertEqual(origin(origin), "gpt2_flax.registry:origin")
    self.assertEqual(origin(collections.OrderedDict()), "collections:OrderedDict")

  def test_what_it_does_not_find_is_its_file(self):
    module, path = self.module("no_such_module")
    self.assertEqual(origin(module.Part), f"{path}:Part")
    self.assertEqual(origin(module.Part()), f"{path}:Part")
    self.assertEqual(origin(module.Bare), f"{path}:Bare")
    self.assertEqual(origin(module.function), f"{path}:function")
    self.assertEqual(origin(functools.partial(module.function)), f"{path}:function")

  def test_nor_is_it_another_module_of_that_name(self):
    module, path = self.module("tabnanny")
    self.assertEqual(origin(module.Part), f"{path}:Part")

  def test_what_is_wrapped_is_from_where_it_was_written(self):
    module, path = self.module("no_such_module")
    wrapped = functools.lru_cache(module.function)
    self.assertEqual(origin(wrapped), f"{path}:function")

  def test_a_package_whose_name_begins_as_ours_is_not_ours(self):
    module, _ = self.module("gpt2_flax_lab")
    sys.path.insert(0, str(self.folder))
    self.addCleanup(sys.path.remove, str(self.folder))
    registry = Registry("data.name", {})
    registry.add("part", module.Part)
    self.assertEqual(registry.needs("part"), "gpt2_flax_lab:Part")
