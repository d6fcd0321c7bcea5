"""What the tests of `deploy/` share: the tree, the binaries, and one release made of them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[2]
DEPLOY = TREE / "deploy"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", TREE / "target")).resolve()


def run(*command, env=None, cwd=TREE, stdin=None):
    """The end of a command, with what it said."""
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env={**os.environ, **(env or {})}, input=stdin, capture_output=True, text=True
    )


def binary(name: str) -> Path:
    """One that `cargo test` has built, or the one that a variable names."""
    path = Path(os.environ.get(f"{name.upper().replace('-', '_')}_BIN", TARGET / "release" / name))
    assert path.is_file(), f"{path} is not there: run `cargo build --release --workspace` first"
    return path


@pytest.fixture(scope="session")
def release(tmp_path_factory) -> Path:
    """A folder as `ci/packages` makes it. Nobody may change it."""
    out = tmp_path_factory.mktemp("release") / "files"
    made = run("ci/packages", binary("skep"), binary("skep-edge"), env={"OUT": str(out), "FAST": "1"})
    assert made.returncode == 0, made.stdout + made.stderr
    return out


@pytest.fixture
def files(release, tmp_path) -> Path:
    """A release of one's own, to be spoilt. Links: tests that change a file write it anew."""
    copy = tmp_path / "files"
    shutil.copytree(release, copy, copy_function=os.link)
    return copy
