"""Stopping a run between two steps when the process is asked to end."""

from __future__ import annotations

import signal
from types import TracebackType


class InterruptedRunError(Exception):
    """The process was asked to end, and everything is saved."""


class Interrupts:
    """Within this context SIGINT and SIGTERM are noted instead of obeyed; a second one is obeyed.

    Attributes:
        received: whether one has come.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.received = False
        self._before = {}

    def __enter__(self) -> Interrupts:
        """Take over the signals."""
        for number in self._SIGNALS:
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

    def _note(self, number, frame):
        if self.received:
            raise KeyboardInterrupt
        self.received = True
