import pathlib
from xml.etree import ElementTree

from absl.testing import parameterized
import chex

from gpt2_flax import GPT2Config
from gpt2_flax.interpret import control_flow
from gpt2_flax.interpret.flow_layout import Box

DRAWING = pathlib.Path(__file__).parents[2] / "docs" / "control_flow.svg"
SMALL = dict(vocab_size=70, context_length=48, num_layers=3, num_heads=4, embed_dim=64)


def flow(**changes) -> list[tuple]:
  """(module titles, label, shape, the labels of what it reads) of each step."""
  return [
    (
      [module.title for module in step.modules],
      step.label,
      step.shape,
      [read.label for read in step.inputs],
    )
    for step in control_flow.control_flow(GPT2Config(**(SMALL | changes)))
  ]


BLOCK = ["block × 3"]
HEAD = [*BLOCK, "attention", "heads × 4, vmapped"]


class ControlFlowTest(chex.TestCase):
  def test_drawing_in_docs_is_current(self):
    self.assertEqual(
      DRAWING.read_text("utf-8"),
      control_flow.default_svg(),
      "run python -m gpt2_flax.interpret.control_flow > docs/control_flow.svg",
    )

  def test_steps_are_those_of_the_model(self):
    self.assertEqual(
      flow(),
      [
        ([], "tokens", "BT", []),
        ([], "positions", "1T", []),
        ([], "token embedding", "BTD", ["tokens"]),
        ([], "× √D", "BTD", ["token embedding"]),
        (["positional_encoding"], "position vectors", "1TD", ["positions"]),
        (["positional_encoding"], "+", "BTD", ["× √D", "position vectors"]),
        (BLOCK, "LayerNorm", "BTD", ["+"]),
        (HEAD, "query", "BTK", ["LayerNorm"]),
        (HEAD, "key", "BTK", ["LayerNorm"]),
        (HEAD, "value", "BTK", ["LayerNorm"]),
        (HEAD, "query · key", "BTS", ["query", "key"]),
        (HEAD, "÷ √K", "BTS", ["query · key"]),
        (HEAD, "causal mask", "1TS", []),
        (HEAD, "mask", "BTS", ["causal mask", "÷ √K"]),
        (HEAD, "softmax", "BTS", ["mask"]),
        (HEAD, "weights · value", "BTK", ["softmax", "value"]),
        ([*BLOCK, "attention"], "concatenate", "BTD", ["weights · value"]),
        ([*BLOCK, "attention"], "project", "BTD", ["concatenate"]),
        (BLOCK, "+", "BTD", ["+", "project"]),
        (BLOCK, "LayerNorm", "BTD", ["+"]),
        ([*BLOCK, "feed_forward"], "expand", "BTF", ["LayerNorm"]),
        ([*BLOCK, "feed_forward"], "activation", "BTF", ["expand"]),
        ([*BLOCK, "feed_forward"], "contract", "BTD", ["activation"]),
        (BLOCK, "+", "BTD", ["+", "contract"]),
        ([], "LayerNorm", "BTD", ["+"]),
        ([], "· token embeddings", "BTV", ["LayerNorm"]),
      ],
    )

  def test_both_additions_of_a_block_read_the_stream_before_them(self):
    steps = control_flow.control_flow(GPT2Config(**SMALL))
    embedded, attended, out = [step for step in steps if step.label == "+"]
    self.assertIs(attended.inputs[0], embedded)
    self.assertIs(out.inputs[0], attended)
    norms = [step for step in steps if step.label == "LayerNorm"]
    self.assertEqual([n.inputs for n in norms], [[embedded], [attended], [out]])

  def test_parameters_are_where_the_model_has_them(self):
    trained = [
      s.label for s in control_flow.control_flow(GPT2Config(**SMALL)) if s.trained
    ]
    self.assertEqual(
      trained,
      [
        "token embedding",
        *("LayerNorm", "query", "key", "value", "project"),
        *("LayerNorm", "expand", "contract"),
        *("LayerNorm", "· token embeddings"),
      ],
    )

  def test_blocks_that_differ_are_not_folded(self):
    steps = flow(scale_attention_by_layer=True, num_layers=2)
    scales = [(modules[0], label) for modules, label, *_ in steps if "÷" in label]
    # the second layer divides by 2 √6 at the traced head_dim of 6
    self.assertEqual(scales, [("blocks_0", "÷ √K"), ("blocks_1", "÷ 4.89898")])

  def test_other_models_have_other_steps(self):
    learned = flow(positional_encoding="learned", num_layers=1)
    labels = [label for _, label, *_ in learned]
    self.assertNotIn("× √D", labels)
    self.assertIn(
      (["positional_encoding"], "position vectors", "1TD", ["positions"]), learned
    )
    self.assertEqual(learned[5][0], ["block"])
    unscaled = [label for _, label, *_ in flow(scale_attention=False)]
    self.assertIn("÷ 1", unscaled)
    self.assertNotIn("÷ √K", unscaled)

  @parameterized.parameters({}, {"positional_encoding": "learned"}, {"num_layers": 1})
  def test_nothing_overlaps(self, **changes):
    steps = control_flow.control_flow(GPT2Config(**(SMALL | changes)))

    def check(box: Box):
      places = [
        (i.x - i.width / 2, i.y, i.x + i.width / 2, i.y + i.height) for i in box.items
      ]
      for number, (left, top, right, bottom) in enumerate(places):
        self.assertGreaterEqual(left, 0)
        self.assertLessEqual(right, box.width)
        self.assertGreaterEqual(top, 0)
        self.assertLessEqual(bottom, box.height)
        for other in places[:number]:
          apart = (
            left >= other[2]
            or other[0] >= right
            or top >= other[3]
            or other[1] >= bottom
          )
          self.assertTrue(apart, box.items[number].content)
      for arrow in box.arrows:
        if not arrow.source.beside:
          self.assertLess(arrow.source.y, arrow.target.y)
      for item in box.items:
        if isinstance(item.content, Box):
          check(item.content)

    check(Box(None, steps, steps))

  def test_every_step_is_drawn_once_with_its_shape(self):
    drawn = ElementTree.fromstring(control_flow.control_flow_svg(GPT2Config(**SMALL)))
    texts = [node.text for node in drawn.iter("{http://www.w3.org/2000/svg}text")]
    for _, label, shape, _ in flow():
      self.assertIn(label, texts)
      if label != "causal mask":  # it stands beside its reader, with no room
        self.assertIn(f"[{', '.join(shape)}]", texts)
    self.assertEqual(texts.count("+"), 3)
    self.assertIn("[H, B, T, K]", texts)
    self.assertEqual(texts.count("block × 3"), 1)
