import pathlib
import tempfile

import chex
import jax.numpy as jnp

from gpt2_flax.errors import InputError
from gpt2_flax.training import profile


class ProfileTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def steps(self, folder, numbers):
    with profile.Profile(folder, start_step=100) as tracer:
      for step in numbers:
        tracer.before(step)
        tracer.after(step, jnp.sin(jnp.ones(3)))

  def written(self):
    return sorted(path.name.split(".", 1)[1] for path in self.folder.rglob("*.gz"))

  def test_a_run_is_traced_for_perfetto_and_tensorboard(self):
    self.steps(str(self.folder / "trace"), range(101, 120))
    self.assertIn("json.gz", self.written())
    self.assertLen(list(self.folder.rglob("*.xplane.pb")), 1)

  def test_a_run_that_ends_within_is_traced_up_to_there(self):
    self.steps(str(self.folder / "trace"), range(101, 113))
    self.assertLen(list(self.folder.rglob("*.xplane.pb")), 1)

  def test_nothing_without_a_folder_or_before_its_steps(self):
    self.steps("", range(101, 120))
    self.steps(str(self.folder / "trace"), range(101, 109))
    self.assertEqual(list((self.folder / "trace").iterdir()), [])

  def test_a_folder_that_cannot_be_made_is_told_before_the_first_step(self):
    (self.folder / "file").touch()
    for name in ("file", "x" * 300):
      with self.assertRaisesRegex(InputError, f"config.profile=.*{name} cannot be"):
        profile.Profile(str(self.folder / name), start_step=0)
