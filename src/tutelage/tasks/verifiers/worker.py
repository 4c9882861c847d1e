"""A child process for libraries that evaluate what a model wrote, so that no completion can stall or crash a training run.

Symbolic mathematics on a model's output may run for hours (10^10^10), exhaust memory, or crash; the usual remedy, a signal alarm, works
in the main thread alone and takes the alarm away from others. Here one child process answers calls as JSON lines. A watchdog thread inside
it (`faulthandler`, which needs no cooperation of the running code) ends it at the timeout; the next call starts another.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import subprocess
import sys
import threading
from typing import IO, Any

from tutelage.errors import TutelageError

MEMORY_LIMIT = 8 * 2**30
"""Bytes of address space that the child may use, where the system can limit it."""


class WorkerError(RuntimeError):
    """The called function raised; the message is its exception's."""


class Stalled(WorkerError):
    """The call took longer than its timeout, or ended the process (memory, a crash in native code)."""


class Worker:
    """Calls functions, given as `module:function` with JSON arguments and a JSON result, in a child process. Safe to share by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def call(self, function: str, *args: Any, timeout: float, library: str) -> Any:
        """The function's result; `Stalled` after `timeout` seconds, `WorkerError` where it raised.

        `library` is imported before the clock starts: the first import takes seconds.
        """
        with self._lock:
            process = self._process if self._process is not None and self._process.poll() is None else self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps([function, args, timeout, library]) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except OSError:  # it died between two calls
                line = ""
            except BaseException:  # interrupted: the reply to this call must not answer the next
                self._stop()
                raise
            if not line:
                self._stop()
                raise Stalled(f"no result within {timeout:g} seconds and {MEMORY_LIMIT // 2**30} GiB")
        value, error = json.loads(line)
        if error is not None:
            raise WorkerError(error)
        return value

    def _start(self) -> subprocess.Popen[str]:
        self._stop()  # one that died meanwhile
        # A caller's sys.path may differ from a fresh interpreter's; one thread, since judging is called from every rank of a run.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=environment,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            self._stop()
            raise TutelageError(f"The process that judges symbolic answers did not start; see why with: {sys.executable} -m {__name__}")
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(OSError):
                process.communicate()

    def _forget(self) -> None:
        """After a fork the parent's child and its pipes belong to the parent alone."""
        self.__init__()  # type: ignore[misc]


WORKER = Worker()
atexit.register(WORKER._stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=WORKER._forget)


def _serve(requests: IO[str], replies: IO[str]) -> None:
    """Answer calls until the parent closes the pipe."""
    import faulthandler

    print("ready", file=replies, flush=True)
    with open(os.devnull, "w") as nowhere:
        for line in requests:
            name, args, timeout, library = json.loads(line)
            module, _, function = name.partition(":")
            try:
                importlib.import_module(library)
                called = getattr(importlib.import_module(module), function)
                faulthandler.dump_traceback_later(timeout, exit=True, file=nowhere)
                reply = [called(*args), None]
            except Exception as error:
                reply = [None, f"{type(error).__name__}: {error}"]
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps(reply), file=replies, flush=True)


def _main() -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    with contextlib.suppress(ImportError, ValueError, OSError):  # no limits on this system, or a lower one is set
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not be read as a reply
    _serve(sys.stdin, replies)


if __name__ == "__main__":
    _main()
