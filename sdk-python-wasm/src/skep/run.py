"""Runs a dataflow: ``python -m skep.run FLOW``.

FLOW is a module (``shop.orders``) or a file (``shop/orders.py``), and what to take from it: ``:flow`` (a name, `flow` unless given) or
``:make(5, key="a")`` (a function that returns a flow; its arguments are literals).

Its workers are processes that this one starts (see :mod:`skep.dataflow.processes`); a single one is this process itself (:mod:`skep.dataflow.local`),
and so are several of a flow that can't be in more than one.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from .dataflow.errors import DataflowError, StepError, WorkerTraceback, user_traceback
from .dataflow.graph import Dataflow
from .dataflow.limits import EPOCH_INTERVAL, PROCESSES_MAX, WORKERS_MAX

__all__ = ["cli_main", "find_flow", "main"]

#: Settings that come by the environment too: ours, then the ancestor's.
_PREFIXES = ("SKEP_", "BYTEWAX_")
_INTERRUPTED = 130


class UsageError(Exception):
    """The command line can't be followed. Its text is for whoever wrote that."""


def find_flow(import_str: str) -> Dataflow:
    """The flow that a text names. :class:`UsageError`: it names none; whatever its module raises comes as it is."""
    place, _, what = import_str.partition(":")
    # A drive's letter is no module.
    if len(place) == 1 and what[:1] in ("\\", "/"):
        drive, (place, _, what) = place, what.partition(":")
        place = f"{drive}:{place}"
    if not place:
        raise UsageError(f"{import_str!r} names no module or file: it is MODULE_OR_FILE[:NAME], as in orders.py:flow")
    name, args, kwargs = _wanted(what or "flow", import_str)
    module = _import(place)
    found = getattr(module, name, None)
    if found is None:
        flows = sorted(key for key, value in vars(module).items() if isinstance(value, Dataflow))
        has = f"it has {', '.join(flows)}" if flows else "it has no Dataflow at its top level"
        raise UsageError(f"{place} has no {name!r}: {has}; name it behind a colon, as in {place}:{flows[0] if flows else 'make()'}")
    if not isinstance(found, Dataflow) and callable(found):
        try:
            inspect.signature(found).bind(*(args or ()), **kwargs)
        except TypeError as e:
            raise UsageError(f"{import_str!r}: {name}{inspect.signature(found)} can't be called like this: {e}") from None
        found = found(*(args or ()), **kwargs)
    elif args is not None:
        raise UsageError(f"{import_str!r}: {name!r} is no function, it is {_a(found)}")
    if not isinstance(found, Dataflow):
        raise UsageError(f"{import_str!r} gives {_a(found)}, where a skep.dataflow.Dataflow is wanted{_foreign(found)}")
    return found


def _a(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def _foreign(value: object) -> str:
    if type(value).__module__.split(".")[0] == "bytewax":
        return ": it was made with Bytewax; run it with --bytewax, or change its imports from bytewax to skep.dataflow"
    return ""


def _wanted(what: str, import_str: str) -> tuple[str, tuple[Any, ...] | None, dict[str, Any]]:
    """A name, and if it is to be called, the arguments."""
    try:
        node = ast.parse(what.strip(), mode="eval").body
    except SyntaxError:
        raise UsageError(f"{import_str!r}: {what!r} is neither a name nor a call such as make(1)") from None
    if isinstance(node, ast.Name):
        return node.id, None, {}
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise UsageError(f"{import_str!r}: {what!r} is neither a name nor a call such as make(1)")
    try:
        args = tuple(ast.literal_eval(arg) for arg in node.args)
        kwargs = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords if word.arg}
        if len(kwargs) != len(node.keywords):
            raise ValueError
    except ValueError:
        raise UsageError(f"{import_str!r}: the arguments in {what!r} must be literals: text, numbers, lists, dicts and the like") from None
    return node.func.id, args, kwargs


def _import(place: str) -> Any:
    path = Path(place)
    is_file = place.endswith(".py") or "/" in place or os.sep in place
    if is_file:
        if not place.endswith(".py"):
            path = path.with_name(path.name + ".py") if not path.is_dir() else path / "__init__.py"
        if not path.is_file():
            raise UsageError(f"no file {path} (looked in {Path.cwd()})")
        path = path.resolve()
        parts = [path.stem] if path.stem != "__init__" else []
        root = path.parent
        # A file of a package is imported as such, so that its relative imports work.
        while (root / "__init__.py").is_file():
            parts.insert(0, root.name)
            root = root.parent
        where, name = str(root), ".".join(parts)
    else:
        where, name = os.getcwd(), place
    if where not in sys.path:
        sys.path.insert(0, where)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as e:
        # Only what was asked for: a module that it imports itself is another matter.
        if e.name is not None and (name == e.name or name.startswith(e.name + ".")):
            raise UsageError(f"no module {e.name!r} (looked in {where} and where Python looks)") from None
        raise
    except ValueError as e:
        if any("importlib" not in frame.filename for frame in traceback.extract_tb(e.__traceback__)[1:]):
            # The module's own.
            raise
        raise UsageError(f"{place!r} is no name of a module: {e}") from None
    if is_file and getattr(module, "__file__", None) and Path(str(module.__file__)).resolve() != path:
        raise UsageError(f"{path} has the name of another module, {module.__file__}: rename it")
    return module


def _setting(environ: Mapping[str, str], name: str) -> str | None:
    return next((environ[prefix + name] for prefix in _PREFIXES if environ.get(prefix + name)), None)


def _seconds(text: str) -> timedelta:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= timedelta.max.total_seconds():
        raise argparse.ArgumentTypeError(f"seconds, not negative; got {text!r}")
    return timedelta(seconds=value)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number, at least 1; got {text!r}")
    return int(text)


def _id(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"a whole number from 0; got {text!r}")
    return int(text)


def _yes(text: str) -> bool:
    if text not in ("0", "1"):
        raise argparse.ArgumentTypeError(f"1 (workers share this process) or 0 (each is one, on a single core too); got {text!r}")
    return text == "1"


def _parser(testing: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m skep.dataflow.testing" if testing else "python -m skep.run",
        description="Runs a dataflow.",
        epilog="Each setting may come by the environment as SKEP_NAME, or as BYTEWAX_NAME: WORKERS_PER_PROCESS, RECOVERY_DIRECTORY, "
        "SNAPSHOT_INTERVAL, RECOVERY_BACKUP_INTERVAL, PROCESS_ID, ADDRESSES, PROCESSES, IN_PROCESS.",
    )
    parser.add_argument("import_str", metavar="FLOW", help="module or file, and name or call: orders, orders.py:flow, orders:make(5)")
    parser.add_argument("-w", "--workers-per-process", type=_count, metavar="N", help="workers, each a process (default: 1)")
    parser.add_argument("-r", "--recovery-directory", type=Path, metavar="DIR", help="keep state here, and go on from what is kept")
    parser.add_argument(
        "-s", "--snapshot-interval", type=_seconds, metavar="SECONDS", help="how long an epoch lasts: state is kept this often (default: 10)"
    )
    parser.add_argument("-b", "--backup-interval", type=_seconds, metavar="SECONDS", help="taken, and not needed: a copy of a store is whole")
    parser.add_argument("-i", "--process-id", type=_id, metavar="ID", help="taken: process 0 runs the workers of all")
    parser.add_argument("-a", "--addresses", metavar="LIST", help="taken: only how many there are counts")
    parser.add_argument("-p", "--processes", type=_count, metavar="N", help=argparse.SUPPRESS if not testing else "times as many workers")
    parser.add_argument("--in-process", action="store_true", default=None, help="workers share this process: no faster than one")
    parser.add_argument("--bytewax", action="store_true", help="let `import bytewax` mean skep.dataflow, for scripts written for Bytewax")
    return parser


def _filled(parser: argparse.ArgumentParser, args: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Takes from the environment what the command line leaves open."""
    kinds: list[tuple[str, str, Any]] = [
        ("workers_per_process", "WORKERS_PER_PROCESS", _count),
        ("recovery_directory", "RECOVERY_DIRECTORY", Path),
        ("snapshot_interval", "SNAPSHOT_INTERVAL", _seconds),
        ("backup_interval", "RECOVERY_BACKUP_INTERVAL", _seconds),
        ("process_id", "PROCESS_ID", _id),
        ("addresses", "ADDRESSES", str),
        ("processes", "PROCESSES", _count),
        ("in_process", "IN_PROCESS", _yes),
    ]
    for field, name, kind in kinds:
        text = _setting(environ, name)
        if getattr(args, field) is None and text is not None:
            try:
                setattr(args, field, kind(text))
            except argparse.ArgumentTypeError as e:
                parser.error(f"{' or '.join(prefix + name for prefix in _PREFIXES)}: {e}")
    pod, owner = _setting(environ, "POD_NAME"), _setting(environ, "STATEFULSET_NAME")
    if args.process_id is None and pod and owner:
        number = pod.removeprefix(owner + "-")
        if not number.isdigit():
            parser.error(f"POD_NAME {pod!r} is not STATEFULSET_NAME {owner!r} with a number behind")
        args.process_id = int(number)
    hosts = _setting(environ, "HOSTFILE_PATH")
    if args.addresses is None and hosts:
        try:
            args.addresses = ";".join(line.strip() for line in Path(hosts).read_text().splitlines() if line.strip())
        except OSError as e:
            parser.error(f"HOSTFILE_PATH: {e}")
    if environ.get("SKEP_BYTEWAX", "0") not in ("", "0") or project_says():
        args.bytewax = True


def project_says() -> bool:
    """Whether the working directory's pyproject.toml has ``bytewax = true`` under ``[tool.skep]``."""
    try:
        text = Path("pyproject.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    if "bytewax" not in text:
        return False
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text).get("tool", {}).get("skep", {}).get("bytewax") is True
    except tomllib.TOMLDecodeError as e:
        raise UsageError(f"pyproject.toml: {e}") from None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cli_main(
    flow: Dataflow,
    *,
    workers_per_process: int = 1,
    process_id: int | None = None,
    addresses: list[str] | None = None,
    epoch_interval: timedelta | None = None,
    recovery_config: Any = None,
) -> None:
    """Runs a flow as the command does, once it is found."""
    count = max(len(addresses or ()), 1)
    if not 0 <= (process_id or 0) < count:
        raise ValueError(f"process_id: from 0 to {count - 1}, as there {'is' if count == 1 else 'are'} {count}; got {process_id!r}")
    if not process_id:
        _carry_out(flow, workers_per_process * count, EPOCH_INTERVAL if epoch_interval is None else epoch_interval, recovery_config)


def _carry_out(flow: Dataflow, workers: int, interval: timedelta, recovery: Any, in_process: bool | None = None) -> None:
    """Runs a flow: on processes where there are several workers, unless it can't be, or ``in_process`` says otherwise."""
    why = None
    if workers > 1 and not in_process:
        from .dataflow.processes import Processes, why_in_one

        why = why_in_one(flow, cores=None if in_process is None else workers)
        if why is None:
            Processes(flow, workers=workers, epoch_interval=interval, recovery=recovery).run()
            return
        _say(f"note: the {workers} workers share this process, as {why}: they are no faster than one")
    from .dataflow.testing import cluster_main

    cluster_main(flow, None, 0, epoch_interval=interval, recovery_config=recovery, worker_count_per_proc=workers)


def main(argv: list[str] | None = None, environ: Mapping[str, str] | None = None, *, testing: bool = False) -> int:
    """The command. Its exit status: 0 at the flow's end, 1 where it failed, 2 where the command can't be followed, 130 after Ctrl-C."""
    parser = _parser(testing)
    args = parser.parse_args(argv)
    env = os.environ if environ is None else environ
    try:
        _filled(parser, args, env)
        if args.bytewax:
            from .dataflow import alias

            alias.install()
        if testing:
            # As the functions of that module: what a flow makes is in this process.
            args.in_process = True
        return _run(args, env)
    except UsageError as e:
        _say(f"error: {e}")
        return 2
    except KeyboardInterrupt:
        _say("interrupted: the flow stops; what was kept at the end of the last epoch is where the next run goes on")
        return _INTERRUPTED


def _run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from .dataflow.recovery import RecoveryConfig

    # What the file itself raises is shown as Python shows it, like that of any script.
    flow = find_flow(args.import_str)
    workers = (args.workers_per_process or 1) * (args.processes or 1)
    addresses = [one.strip() for one in (args.addresses or "").split(";") if one.strip()]
    if args.process_id is not None or addresses:
        _say(
            "note: -i and -a are not needed: the workers of all processes run in process 0. "
            "To use several machines, deploy Bees to a cluster of skep nodes; -w sets the number of workers here"
        )
        count = max(len(addresses), (args.process_id or 0) + 1)
        if args.process_id:
            _say(f"note: this is process {args.process_id}, so there is nothing to do")
            return 0
        workers *= count
    most = WORKERS_MAX if args.in_process else PROCESSES_MAX
    if workers > most:
        more = "" if args.in_process else f", as each is a process (up to {WORKERS_MAX} can share one: --in-process)"
        raise UsageError(f"workers: a whole number from 1 to {most}{more}; got {workers}")
    if _setting(environ, "DATAFLOW_API_ENABLED"):
        _say("note: DATAFLOW_API_ENABLED: the in-process runner has no web server; python -m skep.visualize shows the flow")
    interval = EPOCH_INTERVAL if args.snapshot_interval is None else args.snapshot_interval
    recovery = None if args.recovery_directory is None else RecoveryConfig(args.recovery_directory, args.backup_interval)
    try:
        _carry_out(flow, workers, interval, recovery, args.in_process)
    except (DataflowError, OSError, ValueError) as e:
        if isinstance(e.__cause__, WorkerTraceback) or (isinstance(e, StepError) and e.__cause__ is not None):
            # The user's part of it.
            text = user_traceback(e.__cause__)
            if text is not None:
                _say(text)
        elif not isinstance(e, (DataflowError, OSError)) and type(e).__module__.split(".")[0] != "skep":
            raise
        _say(f"error: {e}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
