"""``skep-py``: makes projects and components. What a node does is the business of ``skep``."""

from __future__ import annotations

import argparse
import json
import sys
from importlib import metadata
from pathlib import Path

from .._version import VERSION, WIT
from . import needs
from .failure import Failure

EXAMPLES = """\
examples:
  skep-py new hello && cd hello && pytest
  skep-py build hello.py -o hello.wasm
  skep-py check hello.py
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="skep-py",
        description="Bees in Python: makes projects and components.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    new = commands.add_parser("new", help="write a new project: a Bee, its test, a manifest")
    new.add_argument("name", help="names file, Bee, Swarm and subject")
    new.add_argument("--path", type=Path, metavar="DIR", help="the folder to make; by default the name")
    build = commands.add_parser("build", help="make a component of a Python file, once for the same content")
    build.add_argument("file", type=Path, help="the file with the Bees")
    build.add_argument("-o", "--out", type=Path, metavar="FILE", help="what to write; by default the file's name with .wasm")
    build.add_argument("--wit", default="", help=argparse.SUPPRESS)
    flow = commands.add_parser("flow", help="make a component and a manifest of a dataflow, as `skep deploy` does")
    flow.add_argument("flow", metavar="FILE[:FLOW]", help="orders.py, orders.py:totals, orders.py:make(3); by default the one called `flow`")
    flow.add_argument("-o", "--out", type=Path, metavar="FILE", help="the component; by default the file's name with .wasm")
    flow.add_argument("-m", "--manifest", type=Path, metavar="FILE", help="the manifest; by default that of the component with .yaml")
    flow.add_argument("--bytewax", action="store_true", help="let `import bytewax` mean skep.dataflow, for scripts written for Bytewax")
    flow.add_argument("--wit", default="", help=argparse.SUPPRESS)
    check = commands.add_parser("check", help="read a Python file as a build does, in a second, and list its Bees")
    check.add_argument("file", type=Path, help="the file with the Bees")
    version = commands.add_parser("version", help="print versions: of the SDK, of what components speak, of their Python")
    for command in (new, build, flow, check, version):
        command.add_argument("--json", action="store_true", help="for programs")
    for command in (build, flow, check):
        command.add_argument("-q", "--quiet", action="store_true", help="no progress")
    return top


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        run(arguments)
    except Failure as failure:
        if arguments.json:
            print(json.dumps({"error": {"message": failure.message, "remedy": failure.remedy}}), file=sys.stderr)
        else:
            print(f"error: {failure.message}", file=sys.stderr)
            if failure.remedy:
                print(f"try:   {failure.remedy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    return 0


def run(arguments: argparse.Namespace) -> None:
    say = json.dumps if arguments.json else None
    if arguments.command == "new":
        from .new import new

        folder, written = new(arguments.name, arguments.path)
        if say:
            print(say({"name": arguments.name, "path": str(folder), "files": written}))
        else:
            print(f"wrote {folder}: {', '.join(written)}\nnext:  skep up {folder}")
    elif arguments.command == "build":
        from .build import build

        out = arguments.out or arguments.file.with_suffix(".wasm")
        probed, cached = build(arguments.file, out, arguments.quiet or bool(say), arguments.wit)
        names = [bee["name"] for bee in probed.bees]
        if say:
            print(say({"out": str(out), "bees": names, "cached": cached, "files": probed.files, "wit": WIT}))
        else:
            print(f"{out}: {', '.join(names)}" + (" (as built before)" if cached else ""))
    elif arguments.command == "flow":
        from .flow import build_flow

        build_flow(arguments)
    elif arguments.command == "check":
        from .build import check

        probed = check(arguments.file, arguments.quiet or bool(say))
        if say:
            print(say({"bees": probed.bees, "files": probed.files}))
        else:
            for bee in probed.bees:
                print(f"{bee['at']}: takes {bee['takes']}")
    else:
        try:
            componentize = metadata.version("componentize-py")
        except metadata.PackageNotFoundError:
            componentize = "none"
        python = ".".join(map(str, sys.version_info[:3]))
        found = {"skep": VERSION, "wit": WIT, "componentize-py": componentize, "guest-python": needs.GUEST_PYTHON, "python": python}
        if say:
            print(say(found))
        else:
            print(f"skep-py {VERSION} (Python {python}), components: skep:bee@{WIT}, Python {needs.GUEST_PYTHON}, componentize-py {componentize}")


if __name__ == "__main__":
    sys.exit(main())
