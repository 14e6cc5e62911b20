"""Processes that start in a moment: forks of one that has imported everything.

A start of Python and its imports take seconds, many times the work of most tests that
need a process of their own. `start` gives what `subprocess.Popen` would: its own
environment, standard streams, signals and exit code. It differs in that modules are
imported already, before the environment was set; what jax reads of the environment when
imported is set anew. doors/test_doors.py starts real processes too.
"""

import atexit
from collections.abc import Iterator
import contextlib
import functools
import gc
import importlib
import json
import os
import pathlib
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from typing import IO, NoReturn

ROOT = pathlib.Path(__file__).parents[1]
# What tests compile runs once, or a hundred times. These flags of XLA make compiling
# take a sixth of the time, and give the same numbers up to rounding.
COMPILE_SOON = (
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
  " --xla_cpu_parallel_codegen_split_count=1"
  " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters=true"
)
PATIENCE_SECONDS = 600  # for what takes a minute at most on an idle machine
IMPORTED = (  # none starts a thread, nor defines flags
  *("jax", "flax.linen", "optax", "orbax.checkpoint", "grain", "tqdm", "jinja2"),
  *("tensorboardX", "matplotlib.figure", "safetensors.numpy", "huggingface_hub"),
  *("gpt2_flax.training.loop", "gpt2_flax.generation", "gpt2_flax.interpret.page"),
)


_one_at_a_time = threading.Lock()


class Process:
  """As `subprocess.Popen`: the part of it that tests use.

  Attributes:
    args, pid, returncode: as there.
    stdin, stdout, stderr: text, of pipes; one is empty where a file was given.
  """

  def __init__(
    self,
    args: list[str],
    env: dict[str, str],
    stdout: int | None = None,
    stderr: int | None = None,
    cwd: str | os.PathLike = ROOT,
  ):
    self.args, self.returncode = args, None
    ends = [os.pipe() for _ in range(4)]
    (self._status, status), (out, theirs_out), (err, theirs_err), (theirs_in, into) = (
      ends
    )
    given = [theirs_in, theirs_out, theirs_err, status]
    for number, descriptor in ((1, stdout), (2, stderr)):
      given[number] = given[number] if descriptor is None else descriptor
    request = json.dumps({"args": args, "env": env, "cwd": str(cwd)}).encode()
    with _one_at_a_time:
      nursery = _nursery()
      socket.send_fds(nursery, [len(request).to_bytes(4, "little")], given)
      nursery.sendall(request)
    for descriptor in (theirs_in, theirs_out, theirs_err, status):
      os.close(descriptor)
    self.stdin, self.stdout = os.fdopen(into, "w"), os.fdopen(out)
    self.stderr = os.fdopen(err)
    self._read: dict[IO, str] = {}
    self._readers: list[threading.Thread] = []
    self.pid = int(self._line())

  def _line(self) -> str:
    line = b""
    while not line.endswith(b"\n"):
      if not (byte := os.read(self._status, 1)):
        raise RuntimeError(f"no word of the process that began {self.args}")
      line += byte
    return line.decode()

  def poll(self) -> int | None:
    """Its exit code, minus the number of the signal that ended it; None: it runs."""
    return self._wait(0)

  def _wait(self, seconds: float | None) -> int | None:
    if self.returncode is None and select.select([self._status], [], [], seconds)[0]:
      self.returncode = int(self._line())
      os.close(self._status)
    return self.returncode

  def wait(self, timeout: float | None = None) -> int:
    """Its exit code, or subprocess.TimeoutExpired."""
    if self._wait(timeout) is None:
      raise subprocess.TimeoutExpired(self.args, timeout)
    return self.returncode

  def communicate(
    self, input: str | None = None, timeout: float | None = None
  ) -> tuple[str, str]:
    """All that it says, once it has ended; or subprocess.TimeoutExpired."""
    until = time.monotonic() + (timeout or 1e9)
    if not self._readers:
      with contextlib.suppress(BrokenPipeError), self.stdin:
        self.stdin.write(input or "")
      for stream in (self.stdout, self.stderr):
        if not stream.closed:
          self._readers.append(threading.Thread(target=self._take, args=(stream,)))
          self._readers[-1].start()
    self.wait(max(0, until - time.monotonic()) if timeout else None)
    for reader in self._readers:
      reader.join()
    return self._read.get(self.stdout, ""), self._read.get(self.stderr, "")

  def _take(self, stream: IO) -> None:
    with stream:
      self._read[stream] = stream.read()

  def send_signal(self, number: int) -> None:
    """To it alone; nothing if it has ended."""
    if self.poll() is None:
      with contextlib.suppress(ProcessLookupError):
        os.kill(self.pid, number)

  def wait_until(self, state: str) -> None:
    """Until its main thread is in a state of proc(5): S sleeps, T was stopped."""
    stat = pathlib.Path(f"/proc/{self.pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != state:
      time.sleep(0.002)

  def kill(self) -> None:
    """Ends it on the spot."""
    self.send_signal(signal.SIGKILL)

  def __enter__(self) -> "Process":
    return self

  def __exit__(self, *_) -> None:
    self.communicate()


def start(
  *args: str,
  stdout: int | None = None,
  stderr: int | None = None,
  cwd: str | os.PathLike = ROOT,
  **environment: str,
) -> Process:
  """Begins `python ARGS`: a script, or -c CODE, or -m MODULE.

  Args:
    stdout, stderr: file descriptors for these streams, instead of pipes.
    cwd: the folder it works in.
    environment: beside that of this process.
  """
  return Process(list(args), dict(os.environ) | environment, stdout, stderr, cwd)


@contextlib.contextmanager
def unread() -> Iterator[int]:
  """A standard output that nobody reads: a pipe whose reader has gone."""
  reader, writer = os.pipe()
  os.close(reader)
  yield writer
  os.close(writer)


def on_devices(number: int) -> dict[str, str]:
  """The environment of a process with so many devices, all of them this CPU."""
  return {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(number),
    # With no more threads than devices, XLA's threads may all wait for one another.
    "NPROC": str(2 * number + 2),
  }


def unforked(*args: str, **environment: str) -> subprocess.Popen:
  """As `start`, with a start of Python and all imports, as a person has it."""
  return subprocess.Popen(
    [sys.executable, *args],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=ROOT,
    env=os.environ | environment,
  )


def finish(
  process: Process | subprocess.Popen, stdin: str = ""
) -> subprocess.CompletedProcess:
  """Waits for its end; one that does not end is killed, an AssertionError."""
  try:
    said = process.communicate(stdin, PATIENCE_SECONDS)
  except subprocess.TimeoutExpired:
    process.kill()
    raise AssertionError(f"did not end by itself: {process.communicate()}") from None
  return subprocess.CompletedProcess(process.args, process.returncode, *said)


@functools.cache
def _nursery() -> socket.socket:
  """The connection to the process that forks, which ends with this one."""
  ours, theirs = socket.socketpair()
  nursery = subprocess.Popen(
    [sys.executable, "-m", __name__, str(theirs.fileno())],
    cwd=ROOT,
    pass_fds=[theirs.fileno()],
    stdin=subprocess.DEVNULL,
    env=os.environ | {"PYTHONUNBUFFERED": ""},  # lines wait in a pipe, as for a person
  )
  theirs.close()

  def end() -> None:
    ours.close()
    nursery.wait()

  atexit.register(end)
  return ours


def _serve(connection: socket.socket) -> dict:
  """Forks for each request; returns in the fork, with what was asked of it."""
  signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever waits has ended: let it go
  while True:
    size, descriptors, _, _ = socket.recv_fds(connection, 4, 4)
    if not size:
      os._exit(0)
    request = b""
    while missing := int.from_bytes(size, "little") - len(request):
      if not (part := connection.recv(missing)):  # no more: the next may be there
        os._exit(0)
      request += part
    if os.fork() == 0:
      connection.close()
      *streams, status = descriptors
      _watch(status, streams)
      return json.loads(request)
    for descriptor in descriptors:
      os.close(descriptor)


def _watch(status: int, streams: list[int]) -> None:
  """Forks once more: returns in the child, and here tells what becomes of it."""
  signal.signal(signal.SIGCHLD, signal.SIG_DFL)
  if child := os.fork():
    for stream in streams:
      os.close(stream)
    os.write(status, f"{child}\n".encode())
    _, ended = os.waitpid(child, 0)
    with contextlib.suppress(BrokenPipeError):
      os.write(status, f"{os.waitstatus_to_exitcode(ended)}\n".encode())
    os._exit(0)
  os.close(status)
  for number, stream in enumerate(streams):
    os.dup2(stream, number)
    os.close(stream)


def _become(args: list[str], env: dict[str, str], cwd: str) -> None:
  """Runs what `python ARGS` runs."""
  import jax

  for name, value in env.items():  # what jax has read already
    setting = name.lower()
    if os.environ.get(name) != value and setting in jax.config.values:
      kind = type(jax.config.values[setting])
      parsers = {bool: lambda text: text in ("1", "true"), float: float, int: int}
      jax.config.update(setting, parsers.get(kind, str)(value))
  os.environ.clear()
  os.environ.update(env)
  os.chdir(cwd)
  how, *rest = args
  if how == "-c":
    code, *rest = rest
    sys.argv = ["-c", *rest]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
  elif how == "-m":
    module, *rest = rest
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
  else:
    sys.argv = args
    sys.path[0] = str(pathlib.Path(how).parent)
    runpy.run_path(how, run_name="__main__")


def _leave(code: int | str | None) -> NoReturn:
  """As the interpreter ends, but for half a second of taking modules apart."""
  if isinstance(code, str):
    print(code, file=sys.stderr)
  threading._shutdown()
  atexit._run_exitfuncs()
  try:
    sys.stdout.flush()
  except OSError as error:  # as the interpreter says it, and the code that it gives
    print(f"Exception ignored in {sys.stdout}: {error!r}", file=sys.stderr)
    code = 120
  sys.stderr.flush()
  os._exit(code if isinstance(code, int) else bool(code))


if __name__ == "__main__":
  for name in IMPORTED:
    importlib.import_module(name)
  gc.freeze()  # else the first collection in each fork copies all pages
  request = _serve(socket.socket(fileno=int(sys.argv[1])))
  code = 0
  try:
    _become(**request)
  except SystemExit as left:
    code = left.code
  except BaseException:
    traceback.print_exc()
    code = 1
  _leave(code)
