"""What a sweep came to, beside numbers worked out by hand."""

import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import parameterized
import chex
import matplotlib.figure
import numpy as np

from gpt2_flax.training.sweep_summary import as_markdown, MOST_CURVES, plot, summarise

RATE = "optimizer.learning_rate"


def row(seed, rate=0.1, **values):
  name = f"seed={seed},learning_rate={rate}"
  return {"member": name, "over": {"train.seed": seed, RATE: rate}, **values}


# Means of 1, 2, 6 and of 2, 4: 3 and 3. Squares around them: 4 + 1 + 9 = 14 and 2; over
# the number but one, 7 and 2; over the number, 7/3 and 1; the roots 1.5275 and 1.
ROWS = [
  row(0, **{"val/loss": 1.0}),
  row(0, 0.3, **{"val/loss": 2.0}),
  row(1, **{"val/loss": 2.0}),
  row(1, 0.3, diverged="the loss is nan"),
  row(2, **{"val/loss": 6.0}),
  row(2, 0.3, **{"val/loss": 4.0}),
]


class SummariseTest(chex.TestCase):
  def test_means_and_their_standard_errors(self):
    first, second = summarise(ROWS, ("val/loss", "val/gap"))
    self.assertEqual(
      list(first), [RATE, "seeds", "val/loss", "val/loss error", "diverged"]
    )
    self.assertEqual((first[RATE], first["seeds"], first["diverged"]), (0.1, 3, 0))
    self.assertEqual((second[RATE], second["seeds"], second["diverged"]), (0.3, 2, 1))
    self.assertEqual((first["val/loss"], second["val/loss"]), (3.0, 3.0))
    self.assertAlmostEqual(first["val/loss error"], (7 / 3) ** 0.5)
    self.assertAlmostEqual(second["val/loss error"], 1.0)

  def test_one_seed_has_no_error_and_none_at_all_no_mean(self):
    rows = [ROWS[0], ROWS[3]]
    first, second = summarise(rows, ("val/loss",))
    self.assertEqual((first["val/loss"], first["val/loss error"]), (1.0, None))
    self.assertEqual((second["val/loss"], second["val/loss error"]), (None, None))
    self.assertEqual((second["seeds"], second["diverged"]), (0, 1))
    self.assertNotIn("diverged", summarise(ROWS[:1], ("val/loss",))[0])

  def test_seeds_of_weights_and_data_are_averaged_together(self):
    rows = [
      {"over": {"data.seed": i, "train.seed": j}, "val/loss": float(i + j)}
      for i in range(2)
      for j in range(2)
    ]
    (line,) = summarise(rows, ("val/loss",))
    self.assertEqual(line["seeds"], 4)
    self.assertEqual(line["val/loss"], 1.0)

  def test_as_a_table(self):
    table = as_markdown(summarise(ROWS, ("val/loss",)))
    self.assertEqual(
      table,
      "| optimizer.learning_rate | seeds | val/loss        | diverged |\n"
      "|-------------------------|-------|-----------------|----------|\n"
      "| 0.1                     | 3     | 3.0000 ± 1.5275 | 0        |\n"
      "| 0.3                     | 2     | 3.0000 ± 1.0000 | 1        |\n",
    )

  def test_what_some_do_not_have_and_what_is_no_number(self):
    rows = [
      {"over": {"data.path": "a|b"}, "val/loss": 1.0},
      {"over": {"config": 4}, "diverged": "nan"},
    ]
    table = as_markdown(summarise(rows, ("val/loss",)))
    cells = [[c.strip() for c in line.split(" | ")] for line in table.splitlines()]
    self.assertEqual(cells[2], ["| a\\|b", "-", "1", "1.0000", "0        |"])
    self.assertEqual(cells[3], ["| -", "4", "0", "-", "1        |"])


class PlotTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def draw(self, rows, records=True):
    """The parts of the picture, before they are painted."""
    for each in rows if records else ():
      folder = self.folder / each["member"]
      folder.mkdir(exist_ok=True)
      losses = [(step, each.get("val/loss", 1.0) + 8 / step) for step in (1, 2, 4)]
      lines = [json.dumps({"step": s, "val/loss": v}) for s, v in losses]
      (folder / "metrics.jsonl").write_text("\n".join(lines))
    drawn, save = [], matplotlib.figure.Figure.savefig

    def remembered(figure, *args, **named):
      drawn.append(figure)
      save(figure, *args, **named)

    with mock.patch.object(matplotlib.figure.Figure, "savefig", remembered):
      plot(rows, self.folder, self.folder / "sweep.png")
    self.assertEqual((self.folder / "sweep.png").read_bytes()[1:4], b"PNG")
    (figure,) = drawn
    return figure.axes

  def test_the_end_over_the_first_key_with_numbers_and_the_way(self):
    end, way = self.draw(ROWS)
    self.assertEqual((end.get_xlabel(), way.get_xlabel()), (RATE, "step"))
    self.assertEqual(end.get_ylabel(), "val/loss (nats per token)")
    means = end.containers[0].lines[0]
    np.testing.assert_array_equal(means.get_xydata(), [[0.1, 3], [0.3, 3]])
    (bars,) = end.containers[0].lines[2]
    error = (7 / 3) ** 0.5
    np.testing.assert_allclose(bars.get_segments()[0][:, 1], [3 - error, 3 + error])
    self.assertEqual(end.get_xscale(), "linear")
    labels = [text.get_text() for text in way.get_legend().get_texts()]
    self.assertEqual(labels, ["learning_rate 0.1", "learning_rate 0.3"])
    first = way.lines[0].get_xydata()
    np.testing.assert_array_equal(first, [[1, 11], [2, 7], [4, 5]])

  def test_a_curve_for_each_value_of_the_other_keys(self):
    rows = [
      {"member": f"{n},{r}", "over": {"size": 4, "name": n, RATE: r}, "val/loss": r}
      for n in ("lion", "muon")
      for r in (0.4, 0.1, 0.2)
    ]
    (end,) = self.draw(rows, records=False)
    labels = [text.get_text() for text in end.get_legend().get_texts()]
    self.assertEqual(labels, ["size 4, name lion", "size 4, name muon"])
    found = end.containers[1].lines[0].get_xdata()
    np.testing.assert_array_equal(found, [0.1, 0.2, 0.4])
    self.assertEqual(end.get_xscale(), "log")  # 4 times as large
    ticks = [text.get_text() for text in end.get_xticklabels()]
    self.assertEqual(ticks, ["0.1", "0.2", "0.4"])

  def test_without_numbers_each_setting_has_its_place(self):
    rows = [
      {"member": f"{n},{s}", "over": {"a.b": n, "seed": s}, "val/loss": 1.0 + s}
      for n in ("x$y$", "_", "x")
      for s in (0, 1)
    ]
    end, _ = self.draw(rows)
    ticks = [text.get_text() for text in end.get_xticklabels()]
    self.assertEqual(ticks, [r"b x\$y\$", "b _", "b x"])
    np.testing.assert_array_equal(end.containers[0].lines[0].get_xdata(), [0, 1, 2])
    self.assertIsNone(end.get_legend())

  @parameterized.parameters(
    ([row(0, **{"val/loss": 1.0}), row(1, **{"val/loss": 2.0})],),
    ([ROWS[3]],),
    ([ROWS[0], ROWS[3]],),
    ([row(0, **{"val/loss": 1.0}), row(0, 0.3)],),
    ([row(s, r, **{"val/loss": r}) for s in (0, 1) for r in range(2, 30)],),
  )
  def test_it_is_there_whatever_there_is_to_show(self, rows):
    self.draw(rows)
    self.draw(rows, records=False)

  def test_the_gap_where_there_is_one_and_some_curves_of_many(self):
    rows = [row(0, r, **{"val/loss": 2.0, "val/gap": 0.5}) for r in range(1, 20)]
    for each in rows:
      folder = self.folder / each["member"]
      folder.mkdir()
      records = [{"step": step, "val/gap": 0.5, "val/loss": 2.0} for step in (1, 2)]
      (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    end, way = self.draw(rows, records=False)
    self.assertEqual(end.get_ylabel(), "val/gap (nats per token)")
    np.testing.assert_array_equal(end.containers[0].lines[0].get_ydata(), [0.5] * 19)
    self.assertLen(way.lines, MOST_CURVES)

  def test_no_way_where_the_end_alone_was_measured(self):
    rows = [row(seed, **{"val/loss": 1.0 + seed}) for seed in (0, 1)]
    for each in rows:
      (self.folder / each["member"]).mkdir()
      record = json.dumps({"step": 9, "val/loss": each["val/loss"]})
      (self.folder / each["member"] / "metrics.jsonl").write_text(record)
    self.assertLen(self.draw(rows, records=False), 1)
