"""What can be told of code without running it, beyond its imports."""

import ast
import builtins
import types
from typing import Any


def check(blocks: list[str]) -> None:
  """Blocks that are run one after another: they compile, and each name is there.

  Imports are run. What is read of a module of ours must be in it.

  Raises:
    AssertionError: a name has not been bound by then, or a module lacks it.
    ImportError: what is imported is not there.
    SyntaxError: a block does not compile.
  """
  found: dict[str, Any] = {}
  bound = {*dir(builtins), "__name__"}
  for block in blocks:
    nodes = list(ast.walk(ast.parse(block)))
    for node in nodes:
      if isinstance(node, ast.Import | ast.ImportFrom) and not _is_optional(node):
        exec(ast.unparse(node), found)
    bound |= found.keys() | {name for node in nodes for name in _names_bound(node)}
    for node in nodes:
      if isinstance(node, ast.Name):
        assert node.id in bound, f"{node.id} is not bound in {block}"
      if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        module = found.get(node.value.id)
        if _is_ours(module):
          assert hasattr(module, node.attr), f"{module.__name__} has no {node.attr}"


def _is_optional(node: ast.Import | ast.ImportFrom) -> bool:
  return isinstance(node, ast.Import) and node.names[0].name == "wandb"


def _is_ours(module: Any) -> bool:
  return isinstance(module, types.ModuleType) and module.__name__.startswith("gpt2_")


def _names_bound(node: ast.AST) -> list[str]:
  if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
    return [node.id]
  if isinstance(node, ast.FunctionDef | ast.ClassDef):
    return [node.name]
  if isinstance(node, ast.Import):
    return [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
  return [node.arg] if isinstance(node, ast.arg) else []
