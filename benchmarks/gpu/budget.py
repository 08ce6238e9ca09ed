"""Time that is spent where it was meant to be: shares of the limit, and what did not fit, by name."""

import contextlib
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

# Of the limit; what a part leaves over goes to those after it.
SHARES = {"ops": 0.35, "models": 0.5, "compiled": 0.15}


leave = os._exit  # without waiting for anything


class OutOfTime(Exception):
    """A piece ran past the end of its part."""


class Budget:
    def __init__(self, limit: float) -> None:
        self.limit, self.start = limit, time.monotonic()
        self.spent: dict[str, float] = {}
        self.not_measured: list[dict[str, str]] = []
        self.in_flight = ""
        self._end = self.start + limit

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start

    @property
    def left(self) -> float:
        """Seconds that the current part still has."""
        return self._end - time.monotonic()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part may go on until all shares up to its own are used up."""
        shares = list(SHARES)
        until = sum(SHARES[part] for part in shares[: shares.index(name) + 1]) / sum(SHARES.values())
        begin, self._end = time.monotonic(), self.start + self.limit * until
        try:
            yield
        finally:
            self.spent[name] = time.monotonic() - begin
            self._end = self.start + self.limit

    def skip(self, what: str, why: str = "time") -> None:
        self.not_measured.append({"what": what, "why": why})

    def piece(self, what: str, run: Callable[[], Any], grace: float = 10.0) -> tuple[Any, dict[str, str] | None]:
        """(what `run` returns, None), or (None, why not). A failure is recorded, and the report goes on."""
        if self.left <= 0:
            self.skip(what)
            return None, {"status": "not measured", "why": "time"}
        self.in_flight = what
        try:
            with _alarm(self.left + grace):
                return run(), None
        except OutOfTime:
            self.skip(what, "time: stopped on the way")
            return None, {"status": "not measured", "why": "time"}
        except Exception as error:  # any failing piece, whatever it is
            text = f"{type(error).__name__}: {error}"
            return None, {"status": "failed", "why": text, "traceback": traceback.format_exc()}
        finally:
            self.in_flight = ""


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """OutOfTime in the main thread after so many seconds."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def watchdog(budget: Budget, write: Callable[[str], Any], grace: float = 15.0) -> threading.Timer:
    """Past the limit, with a kernel that never returns, Python gets no alarm: write what there is, and leave."""

    def bark() -> None:
        write(f"stopped {grace:g} s past the limit in: {budget.in_flight or 'no piece'}")
        leave(3)

    timer = threading.Timer(budget.limit - budget.elapsed + grace, bark)
    timer.daemon = True
    timer.start()
    return timer
