"""Progress on stderr: a line that counts seconds on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType


class Step:
    """``with Step("build hello"):`` says what is under way, and how long it took."""

    def __init__(self, what: str, quiet: bool = False) -> None:
        self.what = what
        self.quiet = quiet
        self.about = ""
        self._live = sys.stderr.isatty() and not quiet
        self._ended = threading.Event()
        self._since = 0.0

    def __enter__(self) -> Step:
        self._since = time.monotonic()
        if self._live:
            self._ticker = threading.Thread(target=self._tick, daemon=True)
            self._ticker.start()
        elif not self.quiet:
            print(f"{self.what} …", file=sys.stderr, flush=True)
        return self

    def _tick(self) -> None:
        while not self._ended.wait(0.2):
            took = time.monotonic() - self._since
            print(f"\r\x1b[2K{self.what} … {took:.0f} s", end="", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        took = time.monotonic() - self._since
        if self._live:
            self._ended.set()
            self._ticker.join()
            print("\r\x1b[2K", end="", file=sys.stderr)
        if kind is None and not self.quiet:
            about = f": {self.about}" if self.about else ""
            print(f"{self.what}{about} ({took:.1f} s)", file=sys.stderr, flush=True)
