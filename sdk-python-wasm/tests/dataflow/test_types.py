"""What a type checker finds in a flow: all mistakes, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TYPED = Path(__file__).parent / "typed.py"


def test_mypy_finds_the_mistakes_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    config = TYPED.parents[2] / "pyproject.toml"
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(tmp_path), "--no-error-summary", str(TYPED)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TYPED.parents[2])
    found = {int(line) for line in re.findall(r"typed\.py:(\d+): error", done.stdout)}
    marked = {number for number, line in enumerate(TYPED.read_text().splitlines(), 1) if "# ERROR" in line}
    assert found == marked and len(marked) >= 8, done.stdout + done.stderr
