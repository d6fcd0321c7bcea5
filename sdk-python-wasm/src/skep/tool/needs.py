"""The packages that a Bee needs: found in its folder, installed beside it by pip, refused when they are not Python alone."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import cache
from .failure import Failure
from .progress import Step

#: Of the interpreter that a component carries.
GUEST_PYTHON = "3.14"
_NATIVE = (".so", ".pyd", ".dylib", ".dll")
#: What to do instead, for those that are asked for most.
_INSTEAD = {
    "numpy": "use lists, `array` or `statistics`; or do the numeric work in a Rust Bee of the same Swarm",
    "pandas": "use `csv`, `sqlite3` or plain dicts; or do the work in a Rust Bee of the same Swarm",
    "pydantic": "use dataclasses, which skep reads, or `pydantic<2`, which is Python alone",
    "pydantic-core": "use dataclasses, which skep reads, or `pydantic<2`, which is Python alone",
    "orjson": "use `json`",
    "ujson": "use `json`",
    "requests": "use `skep.http`, which sends to the hosts that the manifest lists",
    "httpx": "use `skep.http`, which sends to the hosts that the manifest lists",
    "aiohttp": "use `skep.http`, which sends to the hosts that the manifest lists",
    "urllib3": "use `skep.http`, which sends to the hosts that the manifest lists",
    "bytewax": "import it from `skep.dataflow`; or give --bytewax, by which `import bytewax` means that",
    "torch": "run the model elsewhere and call it from there, or take a small one that is Python alone",
    "scikit-learn": "export the model's numbers and compute with them in Python or Rust",
}


def find(folder: Path) -> tuple[str, list[str]]:
    """Where the folder says what its Bees need, and what: `requirements.txt`, or `[project] dependencies` of `pyproject.toml`."""
    requirements = folder / "requirements.txt"
    if requirements.is_file():
        lines = requirements.read_text().splitlines()
        return str(requirements), [line for raw in lines if (line := raw.split(" #")[0].strip()) and not line.startswith("#")]
    project = folder / "pyproject.toml"
    if project.is_file():
        try:
            parsed = _toml(project)
        except ValueError as e:
            raise Failure(f"{project}: {e}", "mend the file") from None
        listed = parsed.get("project", {}).get("dependencies", [])
        return str(project), [str(line) for line in listed]
    return "", []


def _toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(path.read_text())


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement)
    return re.sub(r"[-_.]+", "-", found.group()).lower() if found else requirement


def vendor(folder: Path, quiet: bool = False) -> Path | None:
    """A folder with all that the Bees of this one need, made once for the same list."""
    said, listed = find(folder)
    # The SDK is in every component.
    listed = [line for line in listed if name_of(line) != "skep"]
    if not listed:
        return None
    key = hashlib.sha256("\n".join([GUEST_PYTHON, *sorted(listed)]).encode())
    for line in listed:
        # A file or folder beside it: its content counts too, at least by name, size and time.
        local = folder / line
        if line.startswith(("-", ".", "/")) and not local.exists() and line.startswith("-"):
            raise Failure(f"{said}: `{line}` is an option, and only packages can be listed", "list the packages themselves")
        if local.exists():
            stat = local.stat()
            key.update(f"{local} {stat.st_size} {stat.st_mtime_ns}".encode())
    digest = key.hexdigest()[:32]
    if (kept := cache.find("vendor", digest)) is not None:
        return kept
    with Step(f"vendor {', '.join(name_of(line) for line in listed)}", quiet), cache.room("vendor") as room:
        target = room / "packages"
        _install(folder, listed, target, said)
        _refuse_native(target, said)
        return cache.keep("vendor", digest, target)


def _install(folder: Path, listed: list[str], target: Path, said: str) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode != 0:
        raise Failure(f"{sys.executable} has no pip, which installs what {said} lists", f"{sys.executable} -m ensurepip")
    # What any Python can run, as for the interpreter in the component.
    pure = ["--only-binary", ":all:", "--platform", "any", "--implementation", "py", "--abi", "none"]
    pure += ["--python-version", GUEST_PYTHON]
    env = {k: v for k, v in os.environ.items() if k not in ("PIP_TARGET", "PIP_PREFIX", "PIP_USER")}
    ran = subprocess.run([*pip, *pure, "--target", str(target), *listed], cwd=folder, env=env, capture_output=True, text=True)
    if ran.returncode == 0:
        return
    # Perhaps one comes as source alone, which may well be pure: it is built, and looked at then.
    again = subprocess.run([*pip, "--target", str(target), *listed], cwd=folder, env=env, capture_output=True, text=True)
    if again.returncode != 0:
        why = [line for line in again.stderr.splitlines() if line.startswith("ERROR")] or again.stderr.splitlines()[-3:]
        raise Failure(f"pip could not install what {said} lists:\n  " + "\n  ".join(why), "mend the list, or look at the network")


def _refuse_native(target: Path, said: str) -> None:
    native: dict[str, str] = {}
    for record in sorted(target.glob("*.dist-info/RECORD")):
        files = [line.split(",")[0] for line in record.read_text().splitlines()]
        found = next((f for f in files if f.endswith(_NATIVE)), None)
        if found is not None:
            native[name_of(record.parent.name.removesuffix(".dist-info").rsplit("-", 1)[0])] = found
    if not native:
        return
    lines = [f"{name} ({file}): {_INSTEAD.get(name, 'take a package that is Python alone')}" for name, file in native.items()]
    raise Failure(
        f"{said}: native code, which cannot run in a component, is in\n  " + "\n  ".join(lines),
        "WebAssembly runs Python's own code and its standard library",
    )
