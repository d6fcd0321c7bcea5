"""The examples in the docstrings, and those of the documentation page."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import skep.dataflow

MODULES = sorted(
    ["skep.dataflow", "skep.run", "skep.visualize"] + [found.name for found in pkgutil.walk_packages(skep.dataflow.__path__, "skep.dataflow.")]
)
PAGE = Path(__file__).parents[3] / "docs" / "dataflow.md"
#: Every public operator has an example that runs.
WANT = {"skep.dataflow.operators": 200, "skep.dataflow.inputs": 10, "skep.dataflow.connectors.files": 10}


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name: str) -> None:
    module = importlib.import_module(name)
    found = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert found.failed == 0
    assert found.attempted >= WANT.get(name, 0)


def test_every_operator_has_an_example() -> None:
    import skep.dataflow.operators as op

    for name in op.__all__:
        function = getattr(op, name)
        if callable(function) and name.islower():
            assert ">>> run_main(flow)" in (function.__doc__ or ""), name


def test_programs_of_the_page_run(tmp_path: Path) -> None:
    """Each python block that follows a line naming a file is that file; each console block is run as it stands, and prints what it shows."""
    text = PAGE.read_text()
    ran = 0
    for name, body in re.findall(r"`(\w+\.(?:py|txt))`:\n\n```\w+\n(.*?)```", text, re.S):
        (tmp_path / name).write_text(body)
    for block in re.findall(r"```console\n(.*?)```", text, re.S):
        if block.startswith("$ skep "):
            # For a node: test_deploy runs it.
            continue
        for command, want in re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", block, re.M):
            done = subprocess.run(
                command.replace("python", sys.executable, 1), shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            assert done.stdout == want, (command, done.stdout, done.stderr)
            ran += 1
    assert ran >= 4
