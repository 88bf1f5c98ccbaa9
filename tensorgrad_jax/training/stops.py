"""Signals that ask a process to end, and streams that nobody reads any more."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NoReturn

STOPPED = 130  # exit status of a process that was asked to end
_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
# While one is there, a first signal is noted and the process goes on to a place where it can stop.
_noting: list[Interrupts] = []


class Interrupts:
    """Within this context a first SIGINT, SIGTERM or SIGHUP is noted; a second one is obeyed.

    In other threads than the main one signals stay as they are: they do not arrive there.

    Attributes:
        received: whether one has come.
    """

    def __init__(self):
        self.received = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        """Take over the signals."""
        if threading.current_thread() is threading.main_thread():
            _noting.append(self)
            for number in _not_ignored():
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            _noting.remove(self)

    def _note(self, number, frame):
        if not self.received:
            self.received = True
            return
        before = self._before[number]
        if callable(before):
            before(number, frame)
        elif before == signal.SIG_DFL:
            signal.signal(number, before)
            os.kill(os.getpid(), number)


class Stop:
    """From now on a signal ends the process at once, with one line and status 130.

    For a command that has nothing to lose but inside `Interrupts`: every file that matters appears
    by a rename. The process ends in the handler, so that nothing on the way out is interrupted
    once more, and no traceback is printed. Python runs handlers between two of its own
    instructions; inside a long call, the compiler's for instance, a thread does their work.

    Attributes:
        advice: what the line says, beside that the process was stopped.
    """

    def __init__(self, advice: str):
        self.advice = advice
        self._leaving = threading.Lock()
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in _not_ignored():
            signal.signal(number, lambda number, frame: self.leave())
        threading.Thread(target=self._watch, daemon=True).start()

    def end(self, status: int) -> NoReturn:
        """End the process with a status when all is done.

        Python would first give the signals back, and then take half a second to end.
        """
        self._leaving.acquire()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)

    def leave(self) -> None:
        """End the process because it was asked to."""
        if not self._leaving.acquire(blocking=False):
            return
        with contextlib.suppress(OSError, ValueError):
            os.write(2, f"stopped; {self.advice}\n".encode(errors="replace"))
        os._exit(STOPPED)

    def _watch(self) -> None:
        """Obey the signals that `Interrupts` does not note."""
        noting, noted = None, 0
        for number in iter(lambda: os.read(self._read, 1)[0], None):
            if number not in _SIGNALS:
                continue
            current = _noting[-1] if _noting else None
            noted = noted + 1 if current is noting else 1
            noting = current
            if current is None or noted > 1:
                self.leave()


def _not_ignored() -> list[int]:
    """The signals to take over: a command that nohup starts is to outlive its terminal."""
    return [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


def keep_streams() -> None:
    """Make lines that nobody can read no reason to end: full disks, closed pipes and streams.

    A closed standard stream is opened on the null device, as the number of its file would else be
    that of the next file of data. What is printed goes out line by line.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for number, name in ((1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(null, number)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115
        setattr(sys, name, _Forgiving(getattr(sys, name), lambda n=number: os.dup2(null, n)))


class _Forgiving:
    """A text stream; once it cannot be written to, `give_up` is called and nothing is raised."""

    def __init__(self, stream: Any, give_up: Callable[[], Any]):
        self._stream, self._give_up = stream, give_up
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text."""
        with self._forgiven():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what was held back."""
        with self._forgiven():
            self._stream.flush()

    @contextlib.contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):
            self._give_up()
