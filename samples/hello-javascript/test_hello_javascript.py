"""The sample is built by componentize-js and runs in the engine."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from skep.pytest_plugin import Component, find_skep

HERE = Path(__file__).parent
TOOLS = HERE.parents[1] / "target" / "tools" / "javascript" / "node_modules"


@pytest.mark.skipif(not TOOLS.is_dir() or find_skep() is None, reason="`ci/tools guests` brings componentize-js")
def test_it_answers(tmp_path):
    sample = tmp_path / "samples" / "hello-javascript"
    shutil.copytree(HERE, sample, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    (tmp_path / "proto").mkdir()
    os.symlink(HERE.parents[1] / "proto" / "wit", tmp_path / "proto" / "wit")
    os.symlink(TOOLS, sample / "node_modules")
    out = tmp_path / "hello.wasm"
    subprocess.run(["node", "build.mjs", str(out)], cwd=sample, check=True)
    good, nameless, broken = Component(out, find_skep()).outcomes("hello", [{"name": "Bee"}, {}, b"{"])
    assert good.respond == [b'{"message":"Hello Bee"}']
    assert (nameless.ended, broken.ended, broken.about) == ("reject", "fail", "SyntaxError")
