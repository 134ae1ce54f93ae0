"""The end of a process whose event loop stands still for good, also when a loop in C lets no Python code run.

Nothing of such a process works any more: no lease is renewed, no timeout comes, no signal is heard.
"""

from __future__ import annotations

import faulthandler
import os
import signal

ENDED_BY = signal.SIGPROF
"""What such a process dies of. The kernel sends it, so it needs nothing that the process could hold."""


class Standstill:
    """Ends this process when `seconds` pass between two calls of `turns`, by a signal before which faulthandler writes
    every thread's stack to stderr. To be called from one thread.

    Two clocks run, and neither counts while the process is stopped as a whole: the caller's rounds, of at most `round`
    seconds each, as long as the caller gets to run at all; and the process' own processor time, which a loop in C uses
    up while it keeps the interpreter. A process whose signal a profiler has taken is left alone.

    >>> standstill = Standstill(30.0, round=0.5)
    >>> standstill.turns(True, 0.25)
    """

    def __init__(self, seconds: float, *, round: float) -> None:
        self._seconds = seconds
        self._round = round
        self._stood = 0.0
        self._on = seconds > 0 and signal.getsignal(ENDED_BY) is signal.SIG_DFL
        if self._on:
            faulthandler.register(ENDED_BY, file=2, all_threads=True, chain=True)
            self.turns(True, 0.0)

    def turns(self, turned: bool, since: float) -> None:
        """Say whether the loop has turned in the last round, which began `since` seconds ago."""
        if not self._on:
            return
        signal.setitimer(signal.ITIMER_PROF, self._seconds)
        self._stood = 0.0 if turned else self._stood + min(since, self._round)
        if self._stood > self._seconds:
            os.kill(os.getpid(), ENDED_BY)

    def over(self) -> None:
        """Let the process stand still as long as it likes."""
        if self._on:
            self._on = False
            signal.setitimer(signal.ITIMER_PROF, 0)
