"""The watch names a process that is silent, but not one that has left on purpose.

Real processes that are stopped and killed: `tests/reliability/stalls.py`.
"""

import socket
import threading
from unittest import mock

from absl.testing import parameterized
import chex

from gpt2_flax.training import watch
from gpt2_flax.training.watch import Watch
from tests import forked


class Ended(BaseException):
  """In place of the process's end."""


class Clients:
  """Of three processes, in place of jax's: the others are `alive` until a number."""

  def __init__(self, **until: int):
    self.until, self.said, self.asked = until, [], 0

  def key_value_set(self, key: str, value: str, overwrite: bool):
    assert overwrite
    self.said.append((key, value))

  def key_value_dir_get(self, prefix: str):
    self.asked += 1
    beats = {name[1:]: min(self.asked, last) for name, last in self.until.items()}
    return [(f"{prefix}{name}", str(beat)) for name, beat in beats.items()]


class BeatTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.now = 0.0
    time = mock.Mock(monotonic=lambda: self.now, sleep=self.sleep)
    self.enterContext(mock.patch.object(watch, "time", time))
    self.enterContext(mock.patch.object(watch, "_end_without", side_effect=self.end))
    self.ended_without = None

  def sleep(self, seconds: float):
    self.now += seconds

  def end(self, processes: str):
    self.ended_without = processes
    raise Ended

  def beat(self, process_id: int, client: Clients, leaves_at: float = 1000.0):
    watching = Watch(process_id, num_processes=3)
    watching._heard = self.now

    def wait(seconds: float) -> bool:
      self.sleep(seconds)
      return self.now >= leaves_at

    watching.leaving = mock.Mock(wait=wait)
    try:
      watching._beat(client)
    except Ended:
      return self.now
    return None

  @parameterized.parameters(1, 2)
  def test_who_is_silent_for_long_is_named(self, process_id):
    client = Clients(p0=10**6, p1=5, p2=10**6)
    client.until[f"p{process_id}"] = 10**6
    client.until[f"p{3 - process_id}"] = 5
    ended_at = self.beat(process_id, client)
    self.assertEqual(self.ended_without, str(3 - process_id))
    last_heard = 4 * watch.BEAT_SECONDS
    patience = watch.SILENT_SECONDS + watch.BEAT_SECONDS
    self.assertBetween(ended_at - last_heard, watch.SILENT_SECONDS, patience)

  def test_who_never_came_is_silent_too_and_all_are_named(self):
    self.assertIsNotNone(self.beat(1, Clients(p1=10**6, p0=3, p2=3)))
    self.assertEqual(self.ended_without, "0, 2")

  def test_process_0_leaves_the_others_time_to_see_it(self):
    ended_at = self.beat(0, Clients(p0=10**6, p1=1, p2=10**6))
    self.assertEqual(self.ended_without, "1")
    self.assertGreaterEqual(ended_at, watch.SILENT_SECONDS + 2 * watch.BEAT_SECONDS)

  def test_while_all_are_alive_nobody_ends_and_each_gives_signs(self):
    client = Clients(p0=10**6, p1=10**6, p2=10**6)
    self.assertIsNone(self.beat(2, client, leaves_at=100))
    self.assertIsNone(self.ended_without)
    expected = [("alive/2", str(number)) for number in range(client.asked)]
    self.assertEqual(client.said, expected)
    self.assertGreater(client.asked, 100 / watch.BEAT_SECONDS - 2)

  @parameterized.parameters((1000.0, "0"), (0.0, None))
  def test_where_the_keys_are_gone_process_0_is(self, leaves_at, named):
    client = mock.Mock(key_value_set=mock.Mock(side_effect=RuntimeError("cut off")))
    self.beat(1, client, leaves_at)
    self.assertEqual(self.ended_without, named)


class ProxyTest(chex.TestCase):
  """What leads to process 0, and sees it go."""

  def setUp(self):
    super().setUp()
    self.gone = threading.Event()
    gone = mock.patch.object(watch, "_end_without", side_effect=self.end)
    self.enterContext(gone)
    self.server = self.enterContext(socket.create_server(("127.0.0.1", 0)))
    self.watching = Watch(1, 2)
    host, port = self.server.getsockname()
    proxy = self.watching.proxy(f"{host}:{port}")
    self.server.accept()[0].close()  # it has looked whether process 0 is there
    host, _, port = proxy.rpartition(":")
    self.near = self.enterContext(socket.create_connection((host, int(port)), 20))
    self.far = self.enterContext(self.server.accept()[0])
    self.addCleanup(self.watching.leaving.set)  # first: its threads end nothing later

  def end(self, processes: str):
    self.assertEqual(processes, "0")
    self.gone.set()

  def test_carries_both_ways(self):
    for one, other in ((self.near, self.far), (self.far, self.near)):
      one.sendall(b"hello")
      self.assertEqual(other.recv(5), b"hello")
    self.assertFalse(self.gone.is_set())

  def test_where_process_0_breaks_off_this_one_ends(self):
    self.far.close()
    self.assertTrue(self.gone.wait(20))

  def test_where_this_one_has_said_good_bye_it_is_no_death(self):
    self.far.sendall(b"x")
    self.assertEqual(self.near.recv(1), b"x")  # so the thread below has begun
    self.watching.leaving.set()
    self.far.close()
    for thread in threading.enumerate():
      if "_inward" in thread.name:  # it reads what comes from process 0
        thread.join(20)
        self.assertFalse(thread.is_alive())
    self.assertFalse(self.gone.is_set())


class EndTest(chex.TestCase):
  def test_one_line_what_each_thread_was_at_and_code_1(self):
    code = (
      "import threading, time\n"
      "from gpt2_flax.training import watch\n"
      "def busy(): time.sleep(60)\n"
      "threading.Thread(target=busy, daemon=True).start()\n"
      "watch.end('process 1 does not answer', with_stacks=True)\n"
    )
    ended = forked.finish(forked.start("-c", code))
    self.assertEqual(ended.returncode, 1)
    self.assertStartsWith(ended.stderr, "error: process 1 does not answer\n")
    self.assertIn(" in busy", ended.stderr)
    self.assertEqual(ended.stdout, "")

  def test_who_leaves_says_nothing_and_loses_nothing(self):
    code = (
      "from gpt2_flax.training import watch\n"
      "print('half a line', end='')\n"
      "watch.leave(7)\n"
    )
    ended = forked.finish(forked.start("-c", code))
    found = (ended.returncode, ended.stdout, ended.stderr)
    self.assertEqual(found, (7, "half a line", ""))
