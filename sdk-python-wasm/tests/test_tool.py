"""`skep-py`: what it refuses, with the place, before anything is built."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from skep.tool import build, cache, needs
from skep.tool.cli import main
from skep.tool.failure import Failure

HELLO = """
from skep import register_bee

@register_bee(name="hello")
def hello(swarm, payload, context):
    swarm.respond(payload)
"""


def refused(path: Path) -> str:
    with pytest.raises(Failure) as failure:
        build.check(path, quiet=True)
    assert failure.value.remedy
    return failure.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def hello(:\n", "bees.py:1: SyntaxError"),
        ("x = 1\nimport nosuch\n", "bees.py:2: there is no module `nosuch`"),
        ("import grpc\n", "bees.py:1: there is no module `grpc`"),
        ("print('hi')\n", "bees.py:1: no Bee is registered"),
        ("raise ValueError('at the top')\n", "bees.py:1: ValueError: at the top"),
        ("import sys\nsys.exit(3)\n", "bees.py:2: the file ends the program (exit status 3)"),
        ("import os\nos._exit(3)\n", "bees.py: Python died while it read the file"),
        ("def f():\n    f()\nf()\n", "bees.py:2: RecursionError"),
        ("open('none.txt')\n", "bees.py:1: FileNotFoundError"),
        (HELLO + HELLO.replace("def hello", "def other"), "two Bees have one name: `hello`, bees.py:"),
        (HELLO.replace('"hello"', '"Hello"'), "a name is of 1 to 63"),
        ("from skep import Gateway\n", "bees.py:1: ImportError: skep.Gateway is for programs that call Swarms"),
        ("\x00", "bees.py"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(source, text, said):
    assert said in refused(source(text))


def test_other_files_are_refused(tmp_path, source):
    assert "is a folder" in refused(tmp_path)
    assert "there is no file" in refused(tmp_path / "none.py")
    (tmp_path / "a.txt").write_text("")
    assert "is not a .py file" in refused(tmp_path / "a.txt")
    for name in ("json.py", "skep.py"):
        assert "would hide this one" in refused(source(HELLO, name))
    latin = tmp_path / "latin.py"
    latin.write_bytes(b"x = '\xff'\n")
    assert "latin.py:1: SyntaxError" in refused(latin)


def test_a_long_top_level_ends(source, monkeypatch):
    monkeypatch.setattr(build, "PROBE_S", 1)
    assert "did not end within 1 s" in refused(source("while True: pass\n"))


def test_bees_and_all_files_that_they_read_are_found(source, tmp_path):
    (tmp_path / "inner").mkdir()
    source("X = 1\n", "inner/__init__.py")
    source("Y = 2\n", "later.py")
    source("Z = 3\n", "unused.py")
    (tmp_path / "model.json").write_text("{}")
    path = source(
        """
        import json, pathlib
        from inner import X
        from skep import Message, register_bee
        MODEL = json.loads(pathlib.Path(__file__).with_name("model.json").read_text())

        @register_bee(name="one")
        def one(swarm, payload: bytes):
            import later, colorsys

        @register_bee(name="two")
        def two(swarm, messages: list[Message]): ...
        """
    )
    probed = build.check(path, quiet=True)
    assert [(b["name"], b["takes"]) for b in probed.bees] == [("one", "bytes"), ("two", "batch")]
    assert probed.files == ["bees.py", "inner/__init__.py", "later.py", "model.json"]
    assert "colorsys" in probed.imports
    before = build._key(probed)
    assert build._key(build.check(path, quiet=True)) == before
    (tmp_path / "model.json").write_text("[]")
    assert build._key(build.check(path, quiet=True)) != before


def test_nothing_is_built_for_another_wit(source, tmp_path):
    with pytest.raises(Failure, match="the node takes skep:bee@9.9.9"):
        build.build(source(HELLO), tmp_path / "o.wasm", quiet=True, wit="9.9.9")


def test_a_build_is_found_by_content(source, tmp_path, monkeypatch):
    monkeypatch.setenv("SKEP_CACHE", str(tmp_path / "cache"))
    made = []

    def componentize(probed, room, file):
        made.append(probed.module)
        (room / "made.wasm").write_bytes(b"\0asm")
        return room / "made.wasm"

    monkeypatch.setattr(build, "_componentize", componentize)
    path = source(HELLO)
    out = tmp_path / "deep" / "o.wasm"
    assert build.build(path, out, quiet=True)[1] is False
    assert build.build(path, out, quiet=True)[1] is True
    source(HELLO + "\n# edited\n")
    assert build.build(path, out, quiet=True)[1] is False
    assert made == ["bees", "bees"] and out.read_bytes() == b"\0asm"
    # Neither half-written files nor working folders are left.
    assert sorted(p.name for p in out.parent.iterdir()) == ["o.wasm"]
    assert not [p for p in (tmp_path / "cache" / "components").iterdir() if p.name.startswith(".")]
    for n in range(cache.KEPT_MAX + 5):
        with cache.room("components") as room:
            (room / "x").write_bytes(b"")
            cache.keep("components", f"k{n}", room / "x")
    assert len(list((tmp_path / "cache" / "components").iterdir())) == cache.KEPT_MAX


def test_needs_are_read_where_projects_say_them(tmp_path):
    assert needs.find(tmp_path) == ("", [])
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\ndependencies = ["a>=1", "skep"]\n')
    assert needs.find(tmp_path)[1] == ["a>=1", "skep"]
    (tmp_path / "requirements.txt").write_text("# first\nb==2 # why\n\n")
    assert needs.find(tmp_path)[1] == ["b==2"]
    assert [needs.name_of(n) for n in ("A_b.c[x]>=1", "skep @ file:.")] == ["a-b-c", "skep"]
    (tmp_path / "requirements.txt").unlink()
    (tmp_path / "pyproject.toml").write_text("[project\n")
    with pytest.raises(Failure, match="pyproject.toml"):
        needs.find(tmp_path)


def test_native_code_is_refused_by_name(tmp_path):
    info = tmp_path / "numpy-2.3.0.dist-info"
    info.mkdir()
    (info / "RECORD").write_text("numpy/__init__.py,,\nnumpy/_core/_multiarray.so,sha256=x,1\n")
    with pytest.raises(Failure) as refused:
        needs._refuse_native(tmp_path, "requirements.txt")
    assert "requirements.txt: native code" in refused.value.message
    assert "numpy (numpy/_core/_multiarray.so)" in refused.value.message and "Rust Bee" in refused.value.message


def test_the_commands(tmp_path, capsys, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "my-bee"]) == 0
    assert "next:  skep up my-bee" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "my-bee").iterdir()) == [".gitignore", "README.md", "my_bee.py", "swarm.yaml", "test_my_bee.py"]
    tested = subprocess.run([sys.executable, "-m", "pytest", "-q", "my-bee"], capture_output=True, text=True)
    assert tested.returncode == 0, tested.stdout
    assert main(["new", "my-bee"]) == 1
    assert "there already: nothing was written" in capsys.readouterr().err
    assert main(["new", "My Bee"]) == 1
    capsys.readouterr()
    assert main(["check", "my-bee/my_bee.py", "-q"]) == 0
    assert capsys.readouterr().out == "`my-bee`, my_bee.py:10: takes json\n"
    assert main(["check", "none.py", "--json"]) == 1
    assert "there is no file" in json.loads(capsys.readouterr().err)["error"]["message"]
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["wit"] == "0.1.0"
    with pytest.raises(SystemExit) as usage:
        main(["nonsense"])
    assert usage.value.code == 2
    assert subprocess.run([sys.executable, "-m", "skep", "version"], capture_output=True).returncode == 0


@pytest.mark.parametrize("given", ["", ":x", "..", "./:flow", "nowhere.py", "no.such.module", "hello.py:make("])
def test_a_flow_that_is_not_there_is_refused_with_a_remedy(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hello.py").write_text("x = 1\n")
    assert main(["flow", given, "-q"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "\ntry:   " in said and "Traceback" not in said
    assert not list(tmp_path.glob("*.wasm"))
