"""The control flow as a picture, from the model's own computation.

    python -m gpt2_flax.interpret.control_flow > control_flow.svg

Nothing is drawn by hand. JAX traces the model to a list of equations, and Flax notes
on each the modules and methods that it came from. The equations of one method become
one step, arrays the arrows between steps, and modules the boxes around them.
"""

import dataclasses
import functools
import re
from typing import Any

import jax
from jax.extend.core import Literal
import jax.numpy as jnp

from gpt2_flax.interpret.flow_drawing import draw
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.training import default_config
from gpt2_flax.training.experiment import parse
from gpt2_flax.transformer import abstract_params, GPT2

# What a reader is told of a module, method or operation; others keep their name.
WORDS = {
  "tokens": ("tokens", "the text, as numbers"),
  "positions": ("positions", "0, 1, 2, …"),
  "token_embedding": ("token embedding", "a row of a table for each"),
  "distances": ("+ bias", "less for tokens far away"),
  "nothing": ("nothing", "{positional_encoding} adds no vectors"),
  "slopes": ("slopes", "a number for each head"),
  "rotate": ("rotate", "by its position"),
  "encode": ("position vectors", "{positional_encoding}"),
  "embedding": ("position vectors", "{positional_encoding}"),
  "attention_norm": ("LayerNorm", ""),
  "feed_forward_norm": ("LayerNorm", ""),
  "final_norm": ("LayerNorm", ""),
  "query": ("query", "what it looks for"),
  "key": ("key", "what it answers to"),
  "value": ("value", "what it hands over"),
  "scores": ("query · key", "how well they fit"),
  "mask": ("mask", "later tokens are out"),
  "softmax": ("softmax", "each row sums to 1"),
  "mix": ("weights · value", "what the token reads"),
  "concatenate": ("concatenate", "heads side by side"),
  "output": ("project", "back to the stream's axes"),
  "hidden": ("activation", "{activation}"),
  "unembed": ("· token embeddings", "logits: how well each fits"),
}
# One size an axis, no two the same, so that an axis is known by its size.
_SIZES = {"B": 2, "H": 3, "K": 6, "T": 11, "D": 18, "F": 17, "V": 19}
_LETTERS: dict[float, str] = {1: "1"}
_LETTERS |= {size: letter for letter, size in _SIZES.items()}


@dataclasses.dataclass(frozen=True)
class Module:
  """A box around steps.

  Attributes:
    name: as in the code.
    times: how often it is there, in words; "" for once.
    axis: the letter that its results have in front, where it is vmapped.
  """

  name: str
  times: str = ""
  axis: str = ""

  @property
  def title(self) -> str:
    return f"{self.name} {self.times}".strip()


@dataclasses.dataclass(eq=False)
class Step:
  """Equations that belong together: one step for a reader.

  Attributes:
    modules: what it is inside of, outermost first.
    label: what it does; "+" is an addition.
    note: the same in other words.
    shape: of the array that leaves it, a letter an axis.
    trained: whether it has parameters.
    inputs: the steps whose arrays it reads, in order.
  """

  modules: tuple[Module, ...]
  label: str
  note: str
  shape: str
  trained: bool
  inputs: list["Step"] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False)
class _Group:
  """Equations of one scope, on their way to be a `Step`."""

  scope: str
  equations: list[Any] = dataclasses.field(default_factory=list)
  inputs: list["_Group"] = dataclasses.field(default_factory=list)
  is_mask: bool = False

  @property
  def counts_slots(self) -> bool:
    """Whether it is 0, 1, 2, ... inside of a head, which is no step for a reader."""
    if self.inputs or "vmap(" not in self.scope:
      return False
    return self.equations[-1].outvars[0].aval.dtype == jnp.int32

  def needs(self, other: "_Group") -> bool:
    """Whether `other` is this group, or before it on some path."""
    todo: list[_Group] = [self]
    seen = {*todo}
    while todo:
      group = todo.pop()
      if group is other:
        return True
      todo += [g for g in group.inputs if g not in seen]
      seen.update(group.inputs)
    return False


def control_flow(config: GPT2Config) -> list[Step]:
  """The steps of a forward pass in order, from the tokens to the logits.

  The model is traced at small sizes, all different: what it does is the same at any.
  Blocks that do the same are one.
  """
  small = dataclasses.replace(
    config,
    vocab_size=_SIZES["V"],
    context_length=_SIZES["T"],
    num_heads=_SIZES["H"],
    embed_dim=_SIZES["D"],
    mlp_dim=_SIZES["F"],
    # one kernel would be one step
    attention="explicit" if config.attention == "flash" else config.attention,
    dtype="float32",  # casts are no steps
  )
  jaxpr = _traced(small)
  source: dict[Any, _Group] = {jaxpr.invars[-1]: _Group("tokens")}
  groups = _grouped(jaxpr.eqns, source)
  logits = source[jaxpr.outvars[0]]
  parameters = set(jaxpr.invars[:-1])
  step_of = {
    group: _step(group, parameters, config)
    for group in groups
    if logits.needs(group) and not group.counts_slots
  }
  for group, step in step_of.items():
    step.inputs = [step_of[g] for g in group.inputs if g in step_of]
  return _folded(list(step_of.values()))


@functools.cache  # a page for each of many texts has the same
def _traced(small: GPT2Config) -> Any:
  model = GPT2(small)
  tokens = jax.ShapeDtypeStruct((_SIZES["B"], _SIZES["T"]), jnp.int32)
  return jax.make_jaxpr(model.apply)(abstract_params(model), tokens).jaxpr


def _grouped(equations: list, source: dict[Any, _Group]) -> list[_Group]:
  """The equations in groups: those of one scope that read from each other.

  But not where that would close a circle, as between a block's two additions. What
  applies a mask is a group of its own; the same mask a second time is not.

  Args:
    equations: of the jaxpr.
    source: the group that a variable comes from; filled here.

  Returns:
    The groups, each after those it reads from.
  """
  groups = list(source.values())
  masked = set()
  for equation in equations:
    scope = str(equation.source_info.name_stack)
    read = [v for v in equation.invars if not isinstance(v, Literal) and v in source]
    masks = [v for v in read if v.aval.dtype == bool and source[v].scope != scope]
    inputs = [source[v] for v in read if v not in masks or scope not in masked]
    group = _Group(scope, [equation], list(dict.fromkeys(inputs)))
    if masks and scope not in masked:
      masked.add(scope)
      group.is_mask = True
    else:
      for earlier in group.inputs.copy():
        if earlier.scope == scope and not earlier.is_mask:
          _join(group, earlier, groups, source)
    groups.append(group)
    source.update((variable, group) for variable in equation.outvars)

  ordered: dict[_Group, None] = {}

  def add(group: _Group) -> None:
    for read in group.inputs:
      if read not in ordered:
        add(read)
    ordered[group] = None

  for group in groups:
    add(group)
  return list(ordered)


def _join(group: _Group, earlier: _Group, groups: list, source: dict) -> None:
  """Joins the earlier group to the new one, unless another path leads between them."""
  if any(other is not earlier and other.needs(earlier) for other in group.inputs):
    return
  if any(other is not group and other.needs(group) for other in earlier.inputs):
    return
  inputs = dict.fromkeys([*group.inputs, *earlier.inputs])
  group.inputs = [other for other in inputs if other not in (group, earlier)]
  group.equations[:0] = earlier.equations
  groups.remove(earlier)
  for variable in (v for e in earlier.equations for v in e.outvars):
    source[variable] = group
  for other in groups:
    inputs = (group if read is earlier else read for read in other.inputs)
    other.inputs = list(dict.fromkeys(inputs))


def _step(group: _Group, parameters: set, config: GPT2Config) -> Step:
  """Says what a group does, by its scope, primitives and shapes."""
  scope = [part for part in group.scope.split("/") if "->" not in part]
  modules = _modules(scope, config)
  read = {v for e in group.equations for v in e.invars if not isinstance(v, Literal)}
  trained = bool(read & parameters)
  name = _operation(group, trained) or scope[-1].rpartition(".")[2]
  if modules and trained and "." not in scope[-1]:
    modules.pop()  # a module of one step is that step
  label, note = WORDS.get(name, (name, ""))
  vmapped = any(module.axis for module in modules)
  shape = group.equations[-1].outvars[0].aval.shape if group.equations else None
  letters = (
    "BT" if shape is None else "".join(_LETTERS.get(size, "·") for size in shape)
  )
  return Step(
    tuple(modules),
    label.format(**vars(config)),
    note.format(**vars(config)),
    letters.replace("H" if vmapped else "", "").replace("TT", "TS"),
    trained,
  )


def _modules(scope: list[str], config: GPT2Config) -> list[Module]:
  """What a step is inside of, without the GPT2 itself.

  Args:
    scope: "name" for a module that is called, "name.method" for a method of it.
  """
  modules = []
  for part in scope:
    vmapped = part.startswith("vmap(")
    name = part.removeprefix("vmap(").removesuffix(")").partition(".")[0]
    if not modules or modules[-1].name != name:
      # the one module that is vmapped: the head
      times, axis = (f"× {config.num_heads}, vmapped", "H") if vmapped else ("", "")
      modules.append(Module(name, times, axis))
  return modules[1:]


def _operation(group: _Group, trained: bool) -> str:
  """What to call a group that has no name of its own in the code, else ""."""
  if not group.equations:
    return "tokens"
  primitives = {equation.primitive.name for equation in group.equations}
  last = group.equations[-1]
  result = last.outvars[0].aval
  if result.dtype == bool:
    return "causal mask"
  if last.invars[0].aval.dtype == bool:
    return "softmax" if "exp" in primitives else "mask"
  if primitives == {"add"}:
    return "+"
  if "iota" in primitives and result.dtype == jnp.int32:
    return "positions"
  if not group.inputs and "encode" in group.scope and not trained:
    return "nothing"
  if not group.inputs and result.shape == (_SIZES["H"],):
    return "slopes"
  if last.primitive.name == "add" and "iota" in primitives:
    return "distances"
  if last.primitive.name in ("mul", "div") and not last.invars[1].aval.shape:
    sign = {"mul": "×", "div": "÷"}[last.primitive.name]
    return f"{sign} {_scalar(group.equations)}"
  return ""


def _scalar(equations: list) -> str:
  """The number that the last equation multiplies with or divides by."""
  known = {}

  def value(variable: Any) -> Any:
    return variable.val if isinstance(variable, Literal) else known.get(variable)

  for equation in equations[:-1]:
    operands = [value(variable) for variable in equation.invars]
    if all(operand is not None for operand in operands):
      result = equation.primitive.bind(*operands, **equation.params)
      known[equation.outvars[0]] = result
  number = float(value(equations[-1].invars[1]))
  letter = _LETTERS.get(round(number**2, 3), "1")
  return f"{number:g}" if letter == "1" else f"√{letter}"


def _folded(steps: list[Step]) -> list[Step]:
  """Only the first of blocks that do the same; it says how many there are."""
  blocks: dict[str, list[Step]] = {}
  for step in steps:
    for module in step.modules[:1]:
      if re.fullmatch(r".*_\d+", module.name):
        blocks.setdefault(module.name, []).append(step)

  def what(block: list[Step]) -> list:
    return [
      (
        (step.modules[1:], step.label, step.note, step.shape, step.trained),
        [block.index(s) if s in block else None for s in step.inputs],
      )
      for step in block
    ]

  first, *others = blocks.values()
  if any(what(other) != what(first) for other in others):
    return steps
  same = {step: first[i] for block in others for i, step in enumerate(block)}
  kept = [step for step in steps if step not in same]
  name = first[0].modules[0].name.rpartition("_")[0].removesuffix("s")
  for step in kept:
    step.inputs = [same.get(s, s) for s in step.inputs]
    if step in first:
      folded = Module(name, f"× {len(blocks)}" if others else "")
      step.modules = (folded, *step.modules[1:])
  return kept


def control_flow_svg(config: GPT2Config) -> str:
  """The picture of a model's `control_flow`, with the sizes of its axes."""
  mlp_dim = config.mlp_dim or 4 * config.embed_dim
  legend = [
    f"B batch · T position ({config.context_length}) · S position looked at",
    f"D width of the stream ({config.embed_dim}) · V vocabulary ({config.vocab_size})",
    f"H heads ({config.num_heads}) · K width of a head ({config.head_dim})"
    f" · F inside the feed-forward ({mlp_dim})",
    "filled: trained parameters · thick: the residual stream",
  ]
  return draw(control_flow(config), "How tokens flow through GPT-2", legend)


def default_svg() -> str:
  """The picture of the model that train.py trains unless told otherwise."""
  config, _ = parse(default_config.get_config())
  return control_flow_svg(config.model)


if __name__ == "__main__":
  print(default_svg(), end="")
