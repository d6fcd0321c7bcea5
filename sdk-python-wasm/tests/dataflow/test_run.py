"""The commands: how a flow is found, settings, Ctrl-C, the other name, drawings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import skep.dataflow.operators as op
from skep.dataflow import Dataflow, Stream, operator
from skep.dataflow.recovery import init_db_dir
from skep.dataflow.testing import TestingSource
from skep.run import main
from skep.visualize import to_json, to_mermaid, to_plantuml

FLOW = """
import {package}.operators as op
from {package}{dataflow} import Dataflow
from {package}.testing import TestingSource

flow = Dataflow("f")
op.inspect_debug("out", op.redistribute("r", op.input("in", flow, TestingSource([1, 2, 3]))))

def make(n=1, *rest, key="k"):
    flow = Dataflow("made")
    op.inspect("out", op.input("in", flow, TestingSource([(n, rest, key)])))
    return flow

def broken():
    flow = Dataflow("broken")
    s = op.input("in", flow, TestingSource([1, 0]))
    op.inspect("out", op.map("divide", s, lambda x: 1 // x))
    return flow

def other():
    return 3

number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with flows, as the current one; what is imported from it is forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("SKEP_", "BYTEWAX_"):
        for key in [key for key in os.environ if key.startswith(name) and key != "SKEP_BIN"]:
            monkeypatch.delenv(key)
    text = FLOW.format(package="skep.dataflow", dataflow="")
    (tmp_path / "orders_flow.py").write_text(text)
    for folder in ("shop_pkg", "shop_pkg/sub"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("")
    (tmp_path / "shop_pkg/sub/inner.py").write_text("from ..near import NEAR\n" + text)
    (tmp_path / "shop_pkg/near.py").write_text("NEAR = 1\n")
    (tmp_path / "fails_flow.py").write_text("import orders_flow\nraise KeyError('at import')\n")
    (tmp_path / "needs_flow.py").write_text("import no_such_module\n")
    before = set(sys.modules)
    yield tmp_path  # type: ignore[misc]
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("orders_flow", "shop_pkg", "fails_flow", "needs_flow", "script"):
            del sys.modules[name]


def run(*argv: str, environ: dict[str, str] | None = None) -> int:
    try:
        return main(list(argv), environ or {})
    except SystemExit as e:
        assert isinstance(e.code, int)
        return e.code


PLAIN = "f.out W0 @1: 1\nf.out W0 @1: 2\nf.out W0 @1: 3\n"


@pytest.mark.parametrize(
    ("flow", "want"),
    [
        ("orders_flow", PLAIN),
        ("orders_flow:flow", PLAIN),
        ("orders_flow:", PLAIN),
        ("orders_flow.py", PLAIN),
        ("./orders_flow.py:flow", PLAIN),
        ("{}/orders_flow.py", PLAIN),
        ("shop_pkg.sub.inner", PLAIN),
        ("shop_pkg/sub/inner.py", PLAIN),
        ("shop_pkg/sub/inner:flow", PLAIN),
        ("orders_flow:make", "made.out: (1, (), 'k')\n"),
        ("orders_flow:make()", "made.out: (1, (), 'k')\n"),
        ("orders_flow.py:make(5, [1, {'a': None}], key=\"x:y\")", "made.out: (5, ([1, {'a': None}],), 'x:y')\n"),
        ("orders_flow:make(-1.5)", "made.out: (-1.5, (), 'k')\n"),
    ],
)
def test_how_a_flow_is_named(here: Path, capsys: pytest.CaptureFixture[str], flow: str, want: str) -> None:
    assert run(flow.replace("{}/", f"{here}/")) == 0
    assert capsys.readouterr() == (want, "")


@pytest.mark.parametrize(
    ("flow", "text"),
    [
        ("none_flow", "no module 'none_flow' (looked in {}"),
        ("none_flow.py", "no file none_flow.py (looked in {})"),
        ("shop_pkg.none", "no module 'shop_pkg.none'"),
        (":flow", "names no module or file"),
        ("orders_flow:none", "orders_flow has no 'none': it has flow; name it behind a colon, as in orders_flow:flow"),
        ("shop_pkg.near", "shop_pkg.near has no 'flow': it has no Dataflow at its top level"),
        ("orders_flow:number", "gives int, where a skep.dataflow.Dataflow is wanted"),
        ("orders_flow:number()", "'number' is no function, it is int"),
        ("orders_flow:other", "gives int, where"),
        ("orders_flow:make(x)", "the arguments in 'make(x)' must be literals"),
        ("orders_flow:make(**{{}})", "must be literals"),
        ("orders_flow:make(nope=1)", "make(n=1, *rest, key='k') can't be called like this"),
        ("orders_flow:make(1", "neither a name nor a call"),
        ("orders_flow:flow.x", "neither a name nor a call"),
        ("orders_flow:1", "neither a name nor a call"),
    ],
)
def test_how_a_flow_is_not_named(here: Path, capsys: pytest.CaptureFixture[str], flow: str, text: str) -> None:
    assert run(flow.format()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and text.format(here) in err


def test_what_a_file_itself_raises_is_shown_as_it_is(here: Path) -> None:
    with pytest.raises(KeyError, match="at import"):
        run("fails_flow")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        run("needs_flow")


@pytest.mark.parametrize("prefix", ["SKEP_", "BYTEWAX_"])
def test_workers_by_flag_and_environment(here: Path, capfd: pytest.CaptureFixture[str], prefix: str) -> None:
    def workers(*argv: str, **environ: str) -> set[str]:
        assert run("orders_flow", *argv, environ={prefix + key: value for key, value in environ.items()}) == 0
        return {line.split()[1] for line in capfd.readouterr().out.splitlines()}

    assert workers() == {"W0"}
    assert workers("-w", "3") == workers("-w3") == workers("--workers-per-process=3") == {"W0", "W1", "W2"}
    assert workers(WORKERS_PER_PROCESS="2") == {"W0", "W1"}
    # The flag counts.
    assert workers("-w", "1", WORKERS_PER_PROCESS="2") == {"W0"}
    assert workers(PROCESSES="2") == workers("-p", "2") == {"W0", "W1"}
    assert workers("-i", "0", "-a", "one:2101;two:2101;three:2101") == {"W0", "W1", "W2"}
    assert workers("-i", "1", "-a", "one:2101;two:2101") == set()
    assert workers(PROCESS_ID="1") == set()
    assert workers(POD_NAME="orders-2", STATEFULSET_NAME="orders") == set()
    (here / "hosts").write_text("one:2101\ntwo:2101\n")
    assert workers(POD_NAME="orders-0", STATEFULSET_NAME="orders", HOSTFILE_PATH=str(here / "hosts")) == {"W0", "W1"}


def test_what_replaces_a_setting_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("orders_flow", "-i", "0", "-a", "one:2101")
    assert "-i and -a are not needed: the workers of all processes run in process 0" in capsys.readouterr().err
    run("orders_flow", environ={"BYTEWAX_DATAFLOW_API_ENABLED": "1"})
    assert "has no web server; python -m skep.visualize" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "environ", "text"),
    [
        (["-w", "0"], {}, "-w/--workers-per-process: a whole number, at least 1; got '0'"),
        (["-w", "x"], {}, "got 'x'"),
        (["-w", "99999"], {}, "workers: a whole number from 1 to 64, as each is a process (up to 1024 can share one: --in-process); got 99999"),
        (["-w", "99999", "--in-process"], {}, "workers: a whole number from 1 to 1024; got 99999"),
        ([], {"SKEP_IN_PROCESS": "yes"}, "SKEP_IN_PROCESS or BYTEWAX_IN_PROCESS: 1 (workers share this process) or 0"),
        (["-s", "-1"], {}, "seconds, not negative; got '-1'"),
        (["-s", "nan"], {}, "got 'nan'"),
        (["-b", "1e300"], {}, "got '1e300'"),
        (["-i", "x"], {}, "a whole number from 0; got 'x'"),
        ([], {"BYTEWAX_WORKERS_PER_PROCESS": "many"}, "SKEP_WORKERS_PER_PROCESS or BYTEWAX_WORKERS_PER_PROCESS: a whole number"),
        ([], {"SKEP_SNAPSHOT_INTERVAL": "x"}, "SNAPSHOT_INTERVAL: seconds"),
        ([], {"BYTEWAX_POD_NAME": "x", "BYTEWAX_STATEFULSET_NAME": "y"}, "POD_NAME 'x' is not STATEFULSET_NAME 'y' with a number behind"),
        ([], {"BYTEWAX_HOSTFILE_PATH": "/none"}, "HOSTFILE_PATH: "),
        (["-r", "none"], {}, "none is no directory: make a recovery store with"),
        (["--nope"], {}, "unrecognized arguments: --nope"),
    ],
)
def test_settings_that_are_wrong(here: Path, capsys: pytest.CaptureFixture[str], argv: list[str], environ: dict[str, str], text: str) -> None:
    assert run("orders_flow", *argv, environ=environ) in (1, 2)
    out, err = capsys.readouterr()
    assert out == "" and text in err


def test_recovery_by_flag_and_environment(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init_db_dir(here / "db", 1)
    assert run("orders_flow", "-r", "db", "-s", "0", "-b", "30") == 0
    assert capsys.readouterr().out == "f.out W0 @1: 1\nf.out W0 @2: 2\nf.out W0 @3: 3\n"
    names = {"BYTEWAX_RECOVERY_DIRECTORY": "db", "BYTEWAX_SNAPSHOT_INTERVAL": "1.5", "BYTEWAX_RECOVERY_BACKUP_INTERVAL": "0"}
    assert run("orders_flow", environ=names) == 0
    assert capsys.readouterr().out == ""


def test_a_step_that_fails_shows_the_users_part_of_the_traceback(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("orders_flow:broken") == 1
    out, err = capsys.readouterr()
    assert out == "broken.out: 1\n"
    lines = err.splitlines()
    assert lines[0] == "Traceback (most recent call last):" and "orders_flow.py" in lines[1]
    assert "skep/dataflow" not in err
    assert lines[-1].startswith("error: step 'broken.divide' (map, ") and "ZeroDivisionError" in lines[-1]


SLOW = """
import time
import skep.dataflow.operators as op
from skep.dataflow import Dataflow
from skep.dataflow.connectors.demo import RandomMetricSource
from datetime import timedelta

def make(stuck):
    flow = Dataflow("slow")
    s = op.input("in", flow, RandomMetricSource("m", timedelta(milliseconds=1)))
    op.inspect("out", op.map("m", s, lambda x: time.sleep(60) if stuck and print("stuck", flush=True) is None else x))
    return flow
"""


@pytest.mark.parametrize("stuck", [False, True])
@pytest.mark.parametrize("argv", [[], ["-w", "3", "-r", "db", "-s", "0.01"]])
def test_ctrl_c_stops_at_once(here: Path, stuck: bool, argv: list[str]) -> None:
    (here / "script.py").write_text(SLOW)
    init_db_dir(here / "db", 1)
    command = [sys.executable, "-m", "skep.run", f"script:make({stuck})", *argv]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline()
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 20
    assert process.returncode == 130
    assert err.startswith("interrupted: ") and "Traceback" not in err


def test_a_script_for_bytewax_runs_as_it_is(here: Path) -> None:
    (here / "script.py").write_text(
        FLOW.format(package="bytewax", dataflow=".dataflow")
        + textwrap.dedent("""
        import bytewax, bytewax.connectors.files, bytewax.operators.helpers, bytewax.errors, bytewax.inputs, bytewax.outputs
        import bytewax.tracing, bytewax.recovery, bytewax.visualize, bytewax.run
        from bytewax.connectors.stdio import StdOutSink
        from bytewax.inputs import StatelessSourcePartition
        import skep.dataflow.inputs
        assert StatelessSourcePartition is skep.dataflow.inputs.StatelessSourcePartition
        assert skep.dataflow.inputs.__spec__.name == "skep.dataflow.inputs"
        try:
            import bytewax.nothing
        except ModuleNotFoundError as e:
            assert "skep has nothing for bytewax.nothing" in str(e)
        else:
            raise AssertionError
        """)
    )
    command = [sys.executable, "-m", "skep.run"]
    done = subprocess.run([*command, "--bytewax", "script"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (PLAIN, "")
    done = subprocess.run([*command, "script"], capture_output=True, text=True, env={**os.environ, "SKEP_BYTEWAX": "1"})
    assert (done.stdout, done.stderr) == (PLAIN, "")
    (here / "pyproject.toml").write_text("[tool.skep]\nbytewax = true\n")
    done = subprocess.run([*command, "script"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (PLAIN, "")
    done = subprocess.run([sys.executable, "-m", "skep.visualize", "--bytewax", "script"], capture_output=True, text=True)
    assert done.stdout.startswith("flowchart TD\n")
    (here / "pyproject.toml").write_text("bytewax = [")
    done = subprocess.run([*command, "script"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: pyproject.toml: ")


def test_the_other_name_only_where_it_is_asked_for(here: Path) -> None:
    code = "import skep.run, skep.dataflow.alias, importlib.util as u; print(getattr(u.find_spec('bytewax'), 'origin', None))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "skep" not in done.stdout.replace(os.sep + "skep" + os.sep, "")
    code = "import sys, types; sys.modules['bytewax'] = types.ModuleType('bytewax'); from skep.dataflow.alias import install; install()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "bytewax is imported already" in done.stderr


def test_the_testing_module_is_a_command_too(here: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "skep.dataflow.testing", "orders_flow", "-p", "3"], capture_output=True, text=True)
    assert sorted(line.split()[1] for line in done.stdout.splitlines()) == ["W0", "W1", "W2"]


# ------------------------------------------------------------------------------------------------------------------------------ drawings


def drawn(module: Any, flow_class: Any, source: Any, operator: Any, stream: Any) -> Any:
    flow = flow_class("f")

    def mine(step_id: Any, up: Any) -> Any:
        return module.map("x", up, str)

    mine.__annotations__ = {"step_id": str, "up": stream, "return": stream}
    s = operator(mine)("n", module.input("inp", flow, source([1, 2, 3])))
    b = module.branch("b", s, lambda x: True)
    j = module.merge("m", b.trues, b.falses)
    module.inspect("i", j)
    module.count_final("c", s, lambda x: "k")
    return flow


GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("flow.mmd", to_mermaid),
        ("flow.puml", to_plantuml),
        ("flow.deep.puml", lambda flow: to_plantuml(flow, recursive=True)),
        ("flow.json", to_json),
    ],
)
def test_drawings(name: str, draw: Callable[[Dataflow], str]) -> None:
    flow = drawn(op, Dataflow, TestingSource, operator, Stream)
    assert draw(flow) + "\n" == (GOLDEN / name).read_text()


def test_drawings_have_the_form_of_bytewax_and_the_same_top() -> None:
    theirs = pytest.importorskip("bytewax.visualize")
    import bytewax.dataflow
    import bytewax.operators
    import bytewax.testing

    ours = drawn(op, Dataflow, TestingSource, operator, Stream)
    their = drawn(
        bytewax.operators, bytewax.dataflow.Dataflow, bytewax.testing.TestingSource, bytewax.dataflow.operator, bytewax.dataflow.Stream
    )
    assert to_mermaid(ours) == theirs.to_mermaid(their)

    def keys(value: Any) -> Any:
        return sorted(value) if isinstance(value, dict) else None

    a, b = json.loads(to_json(ours)), json.loads(theirs.to_json(their))
    assert keys(a) == keys(b)
    for mine, other in zip(a["substeps"], b["substeps"]):
        assert (keys(mine), mine["step_id"], mine["op_type"]) == (keys(other), other["step_id"], other["op_type"])
        assert [keys(port) for port in mine["inp_ports"]] == [keys(port) for port in other["inp_ports"]]
        assert [port["from_port_ids"] for port in mine["inp_ports"]] == [port["from_port_ids"] for port in other["inp_ports"]]


def test_the_command_that_draws(here: Path) -> None:
    def draw(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "skep.visualize", *argv], capture_output=True, text=True)

    assert draw("orders_flow").stdout.startswith("flowchart TD\n")
    assert draw("orders_flow", "-o", "plantuml", "-r").stdout.startswith("@startuml\n")
    assert json.loads(draw("orders_flow:make(2)", "-o", "json").stdout)["flow_id"] == "made"
    wrong = draw("orders_flow:none")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: orders_flow has no 'none'")
