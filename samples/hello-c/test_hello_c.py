"""The sample is built by a C compiler and jco, and runs in the engine."""

import os
import subprocess
from pathlib import Path

import pytest

from skep.pytest_plugin import Component, find_skep

HERE = Path(__file__).parent
TOOLS = HERE.parents[1] / "target" / "tools"
PYTHON, JCO = TOOLS / "c/bin/python", TOOLS / "javascript/node_modules/.bin/jco"


@pytest.mark.skipif(not PYTHON.exists() or not JCO.exists() or find_skep() is None, reason="`ci/tools guests` brings its tools")
def test_it_answers(tmp_path):
    out = tmp_path / "hello.wasm"
    subprocess.run([HERE / "build.sh", out], env={**os.environ, "CC": f"{PYTHON} -m ziglang cc", "JCO": str(JCO)}, check=True)
    good, nameless, long = Component(out, find_skep()).outcomes("hello", [b"Bee", b"", b"x" * 101])
    assert good.respond == [b"Hello Bee"]
    assert (nameless.ended, long.ended, long.about) == ("reject", "reject", "a name has 1 to 100 bytes")
    assert out.stat().st_size < 20_000
