"""What was made before, by content: components, and folders of vendored packages."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

#: Components of some 18 MB each; folders of packages. The least recently used go.
KEPT_MAX = 24


def root() -> Path:
    base = os.environ.get("SKEP_CACHE") or os.environ.get("XDG_CACHE_HOME")
    if os.environ.get("SKEP_CACHE"):
        return Path(os.environ["SKEP_CACHE"])
    return Path(base or Path.home() / ".cache") / "skep" / "python"


def find(kind: str, key: str) -> Path | None:
    path = root() / kind / key
    if not path.exists():
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return path


@contextlib.contextmanager
def room(kind: str) -> Iterator[Path]:
    """A folder to work in; what is left in it at the end goes."""
    folder = root() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(prefix=".", dir=folder)
    except OSError:
        # A home that cannot be written: nothing is kept then.
        made = tempfile.mkdtemp(prefix="skep-")
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def keep(kind: str, key: str, made: Path) -> Path:
    """Puts what was made in a room in its place, in one step: another build may be at the same."""
    path = root() / kind / key
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(made, path)
    except OSError:
        if not path.exists():
            raise
    _prune(path.parent)
    return path


def _prune(folder: Path) -> None:
    with contextlib.suppress(OSError):
        kept = sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: p.stat().st_mtime)
        for old in kept[:-KEPT_MAX]:
            if old.is_dir():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.unlink(missing_ok=True)
