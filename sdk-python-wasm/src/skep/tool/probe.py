"""Reads a Bee's file as the build will, in a process of its own: what it registers, which files that takes, what is wrong with it.

Run as a program, without site-packages, so that only what is vendored can be imported. The answer is one line of JSON on the real stdout;
what the Bee prints meanwhile goes to stderr.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import sys
import traceback
from typing import Any


def main() -> None:
    given = sys.argv[1:]
    flow, bytewax = "", False
    while given[0].startswith("--"):
        if given.pop(0) == "--flow":
            flow = given.pop(0)
        else:
            bytewax = True
    stage, folder, module, *vendored = given
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # The last comes first: the SDK, the user's folder, what it needs.
    for path in [*reversed(vendored), folder, stage]:
        sys.path.insert(0, path)
    os.chdir(folder)
    opened: set[str] = set()

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            path = os.fsdecode(arguments[0])
            opened.add(os.path.abspath(path))

    sys.addaudithook(audit)
    found: dict[str, Any] = {}
    try:
        from skep import registry

        registry.ROOTS[:] = [folder.rstrip("/") + "/"]
        if flow:
            from skep.run import find_flow, project_says

            bytewax = bytewax or project_says()
            if bytewax:
                from skep.dataflow import alias

                alias.install()
            made = find_flow(f"{module}:{flow}")
        else:
            importlib.import_module(module)
        inner = later_imports(folder, opened)
        for name in inner:
            try:
                importlib.import_module(name)
            except ImportError:
                pass  # It may be optional, or for a test.
        found["bees"] = [
            {"name": b.name, "at": b.where, "takes": "batch" if b.batch else b.form.kind} for b in registry.BEES.values()
        ]
        found["imports"] = inner
        found["http"] = "skep.http" in sys.modules
        found["bytewax"] = bytewax
        if flow:
            from dataclasses import asdict

            from skep.dataflow.deploy import deployment

            found["deployment"] = asdict(deployment(made))
    except BaseException as e:
        found["error"] = describe(e, folder)
    root = folder.rstrip("/") + "/"
    # The SDK and the packages may lie in the folder too, as a cache there has them.
    others = tuple(path.rstrip("/") + "/" for path in (stage, *vendored))
    users = [p for p in opened if p.startswith(root) and not p.startswith(others) and os.path.isfile(p)]
    found["files"] = sorted(p[len(root) :] for p in users)
    print(json.dumps(found), file=answer, flush=True)
    # Threads that the file began must not keep the process.
    os._exit(0)


def later_imports(folder: str, opened: set[str]) -> list[str]:
    """What functions import when they run, where a component has nothing left to import from: it is imported at the build."""
    names: set[str] = set()
    root = folder.rstrip("/") + "/"
    for path in sorted(opened):
        if not (path.startswith(root) and path.endswith(".py")):
            continue
        try:
            with open(path, "rb") as source:
                tree = ast.parse(source.read())
        except (SyntaxError, ValueError, OSError):
            continue
        top = set(map(id, tree.body))
        for node in ast.walk(tree):
            if id(node) in top:
                continue
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module)
                # The one of the SDK that is not there before somebody asks for it.
                names.update("skep.http" for alias in node.names if (node.module, alias.name) == ("skep", "http"))
    return sorted(names)


def describe(error: BaseException, folder: str) -> dict[str, Any]:
    """The error, at the last of the user's own lines."""
    root = folder.rstrip("/") + "/"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(root)]
    at = f"{frames[-1].filename[len(root):]}:{frames[-1].lineno}" if frames else ""
    kind = type(error).__name__
    text = "".join(traceback.format_exception_only(type(error), error)).strip()
    if isinstance(error, SyntaxError) and error.filename:
        at = f"{error.filename.removeprefix(root)}:{error.lineno}"
        text = f"{kind}: {error.msg}\n    {(error.text or '').strip()}"
    elif isinstance(error, SystemExit):
        text = f"the file ends the program (exit status {error.code}) while it is read"
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    # What the SDK says of a flow names the step and its line, or what the file has instead.
    told = type(error).__module__ in ("skep.run", "skep.dataflow.errors")
    text = (str(error) if told else text).replace(root, "")
    return {"kind": kind, "text": text, "at": "" if told else at, "missing": missing, "told": told}


if __name__ == "__main__":
    main()
