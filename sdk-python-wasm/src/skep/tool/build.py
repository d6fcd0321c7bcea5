"""From a Python file to a component.

    probe (this Python, a second) -> what it registers, which files it read -> key -> cached, or
    stage (SDK, the Bee's files) -> componentize-py (reads the file once more, in WebAssembly, and keeps that memory) -> component
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from .._version import VERSION, WIT
from . import cache, needs
from .failure import Failure
from .progress import Step

PACKAGE = Path(__file__).resolve().parent.parent
#: What of the SDK goes into a component.
GUEST = (
    "__init__.py",
    "_version.py",
    "dev.py",
    "errors.py",
    "guest.py",
    "guest_http.py",
    "host.py",
    "http.py",
    "message.py",
    "models.py",
    "payload.py",
    "process.py",
    "registry.py",
    "report.py",
    "swarm.py",
    "watch.py",
    "window.py",
)
#: … and into one of a dataflow, beside all of `dataflow/`.
GUEST_OF_FLOW = ("guest_flow.py", "run.py")
#: How long a file may take to be read: it is read again, more slowly, by the build.
PROBE_S = 120
BUILD_S = 900
#: A component has room for 64 MiB; the interpreter takes 18.
FILES_BYTES_MAX = 32 << 20

APP = '''\
"""What the node calls."""

import os
import sys

HERE = __file__.rpartition("/")[0]
# A relative path means the Bee's folder, as it did when the file was probed.
os.chdir(HERE)

from skep import registry

registry.ROOTS[:] = [path.rstrip("/") + "/" for path in sys.path if path.startswith(HERE[:1]) and path[1:].strip("/").isdigit()]

from skep import guest

guest.prepare()

import importlib
import linecache

# Else a traceback has no lines: at run time there are no files.
for name in {sources!r}:
    with open(f"{{HERE}}/{{name}}", encoding="utf-8", errors="replace") as file:
        linecache.cache[f"{{HERE}}/{{name}}"] = (0, None, file.readlines(), name)

{begin}
for name in {imports!r}:
    try:
        importlib.import_module(name)
    except ImportError:
        pass

{end}
'''
BEES = ("importlib.import_module({module!r})", "from skep.guest import Handler\n\nguest.ready()")
FLOW = (
    """\
from skep import guest_flow

if {bytewax!r}:
    from skep.dataflow import alias

    alias.install()
from skep.run import find_flow

guest_flow.install(find_flow({module!r} + ":" + {flow!r}))""",
    "from skep.guest_flow import Handler\n\nguest_flow.ready()",
)


@dataclass
class Probed:
    folder: Path
    module: str
    bees: list[dict[str, str]]
    files: list[str]
    imports: list[str]
    #: Whether it imports what sends requests.
    http: bool
    vendored: Path | None
    #: Of a dataflow: what names it in the file, as `flow` or `make(3)`; whether `import bytewax` means this package; what is deployed of it.
    flow: str = ""
    bytewax: bool = False
    deployment: dict[str, Any] = field(default_factory=dict)


def check(file: Path, quiet: bool = False, flow: str = "", bytewax: bool = False) -> Probed:
    """What is in the file, or what is wrong with it. ``flow``: it is a dataflow's, and this names it there."""
    file = file.resolve()
    if file.is_dir():
        raise Failure(f"{file} is a folder", "name the .py file with the Bees")
    if not file.is_file():
        raise Failure(f"there is no file {file}", "`skep-py new NAME` makes one to start from")
    if file.suffix != ".py":
        raise Failure(f"{file.name} is not a .py file", "name the Python file with the Bees")
    if file.stem in ("skep", "wit_world", "_skep_app", "componentize_py_types") or file.stem in sys.stdlib_module_names:
        raise Failure(f"{file.name}: a module `{file.stem}` is there already, and would hide this one", "rename the file")
    vendored = needs.vendor(file.parent, quiet)
    with cache.room("probe") as stage:
        _stage_sdk(stage, bool(flow))
        command = [sys.executable, "-I", "-S", "-B", "-X", f"pycache_prefix={stage / 'pyc'}", str(Path(__file__).parent / "probe.py")]
        command += ["--flow", flow] if flow else []
        command += ["--bytewax"] if bytewax else []
        command += [str(stage), str(file.parent), file.stem, *([str(vendored)] if vendored else [])]
        try:
            ran = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=PROBE_S)
        except subprocess.TimeoutExpired:
            raise Failure(
                f"{file.name}: its top level did not end within {PROBE_S} s",
                "what is at the top level runs while the component is built: move what must not into a function",
            ) from None
    try:
        found: dict[str, Any] = json.loads(ran.stdout)
    except ValueError:
        said = ran.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise Failure(f"{file.name}: Python died while it read the file; it said: {said[0]}", "mend what it names") from None
    if "error" in found:
        raise _refusal(file, found["error"])
    if not found["bees"] and not flow:
        raise Failure(
            f"{file.name}:1: no Bee is registered",
            f'put `@register_bee(name="{_bee_name(file.stem)}")` above the function that takes messages',
        )
    deployment = found.get("deployment", {})
    return Probed(
        file.parent, file.stem, found["bees"], found["files"], found["imports"], found["http"], vendored, flow, found["bytewax"], deployment
    )


def _bee_name(stem: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-") or "hello"


def _refusal(file: Path, error: dict[str, Any]) -> Failure:
    if error["told"]:
        return Failure(error["text"], "mend the step, or name another flow: FILE:FLOW")
    at = error["at"] or file.name
    missing = error["missing"]
    if missing:
        top = missing.split(".")[0]
        remedy = needs._INSTEAD.get(needs.name_of(top), f"put the package that has it into {file.parent / 'requirements.txt'}")
        return Failure(f"{at}: there is no module `{missing}`", remedy)
    if error["kind"] == "SyntaxError" and sys.version_info[:2] < (3, 14):
        return Failure(f"{at}: {error['text']}", f"mend the line (read by Python {sys.version_info[0]}.{sys.version_info[1]})")
    return Failure(f"{at}: {error['text']}", "mend the line; the top level of the file runs while it is built")


def _guest(flow: bool) -> list[str]:
    """The files of the SDK that go into a component."""
    if not flow:
        return list(GUEST)
    return [*GUEST, *GUEST_OF_FLOW, *(path.relative_to(PACKAGE).as_posix() for path in sorted((PACKAGE / "dataflow").rglob("*.py")))]


def _stage_sdk(stage: Path, flow: bool) -> None:
    for name in _guest(flow):
        target = stage / "skep" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PACKAGE / name, target)


def build(
    file: Path, out: Path, quiet: bool = False, wit: str = "", flow: str = "", bytewax: bool = False
) -> tuple[Probed, bool]:
    """Writes the component. Whether it had been made before. ``flow``: the file is a dataflow's, and this names it there."""
    if wit and wit != WIT:
        raise Failure(
            f"this skep-py {VERSION} makes components for skep:bee@{WIT}, the node takes skep:bee@{wit}",
            "install the `skep` package of the node's own release",
        )
    with Step(f"check {file.name}", quiet) as step:
        probed = check(file, quiet, flow, bytewax)
        step.about = ", ".join([*probed.deployment.get("stages", {}).values(), *(bee["name"] for bee in probed.bees)])
    key = _key(probed)
    if (kept := cache.find("components", key)) is not None:
        _deliver(kept, out)
        return probed, True
    with Step(f"build {out.name}", quiet) as step, cache.room("components") as room:
        made = _componentize(probed, room, file)
        step.about = f"{made.stat().st_size / 1e6:.1f} MB"
        _deliver(cache.keep("components", key, made), out)
    return probed, False


def _deliver(kept: Path, out: Path) -> None:
    """In one step: whoever reads it finds all of it or what was there before."""
    near = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kept, near)
        os.replace(near, out)
    except OSError as e:
        near.unlink(missing_ok=True)
        raise Failure(f"cannot write {out}: {e.strerror}", "choose another with -o") from None


def _key(probed: Probed) -> str:
    """Of all that the component is made of."""
    sha = hashlib.sha256()

    def add(name: str, data: bytes) -> None:
        sha.update(f"{name}\0{len(data)}\0".encode())
        sha.update(data)

    add("componentize-py", metadata.version("componentize-py").encode())
    add("app", _app(probed, []).encode())
    add("vendored", str(probed.vendored.name if probed.vendored else "").encode())
    for name in _guest(bool(probed.flow)):
        add(name, (PACKAGE / name).read_bytes())
    for wit in sorted([*(PACKAGE / "wit").rglob("*.wit"), *(PACKAGE / "wit-http").rglob("*.wit")]):
        add(wit.name, wit.read_bytes())
    total = 0
    for name in probed.files:
        data = (probed.folder / name).read_bytes()
        total += len(data)
        if total > FILES_BYTES_MAX:
            raise Failure(
                f"{probed.folder / name}: the files that the Bee reads have more than {FILES_BYTES_MAX >> 20} MiB",
                "a component has at most 64 MiB, 18 of them Python's: take a smaller model or data set",
            )
        add(name, data)
    return sha.hexdigest()


def _app(probed: Probed, sources: list[str]) -> str:
    begin, end = FLOW if probed.flow else BEES
    begin = begin.format(module=probed.module, flow=probed.flow, bytewax=probed.bytewax)
    return APP.format(sources=sources, begin=begin, imports=probed.imports, end=end)


def _componentize(probed: Probed, room: Path, file: Path) -> Path:
    stage, out = room / "app", room / "made.wasm"
    stage.mkdir()
    _stage_sdk(stage, bool(probed.flow))
    for name in probed.files:
        target = stage / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(probed.folder / name, target)
    sources = [name for name in probed.files if name.endswith(".py")]
    (stage / "_skep_app.py").write_text(_app(probed, sources))
    # Else it would add the site-packages of whatever Python is around.
    bare = room / "venv" / "lib" / "site-packages"
    bare.mkdir(parents=True)
    command = [sys.executable, "-c", "import sys; from componentize_py import script; sys.exit(script())"]
    if probed.http:
        command += ["-q", "-d", str(_wit_with_http(room)), "-w", "module-with-http"]
        command += ["--import-interface-name", "wasi:http/types@0.2.12=http_types"]
    else:
        command += ["-q", "-d", str(PACKAGE / "wit"), "-w", "module"]
    command += ["componentize", "_skep_app", "-p", str(stage)]
    if probed.vendored is not None:
        command += ["-p", str(probed.vendored)]
    command += ["-o", str(out)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    env.update(VIRTUAL_ENV=str(room / "venv"), RUST_BACKTRACE="0")
    try:
        ran = subprocess.run(command, cwd=room, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BUILD_S)
    except subprocess.TimeoutExpired:
        raise Failure(f"{file.name}: the component was not made within {BUILD_S} s", "do less at the top level") from None
    if ran.returncode != 0 or not out.exists():
        raise _in_guest(file, ran.stdout + ran.stderr)
    return out


#: One world of two: componentize-py 0.25.1 merges worlds that are given apart, and then fails on what both have.
WORLD_WITH_HTTP = f"""\
package skep:python;

world module-with-http {{
  include skep:bee/module@{WIT};
  import wasi:http/outgoing-handler@0.2.12;
}}
"""


def _wit_with_http(room: Path) -> Path:
    """The world of Bees that send requests: that of all, and `wasi:http`."""
    wit = room / "wit"
    shutil.copytree(PACKAGE / "wit" / "deps", wit / "deps")
    shutil.copytree(PACKAGE / "wit-http" / "deps", wit / "deps", dirs_exist_ok=True)
    (wit / "deps" / "bee").mkdir()
    shutil.copyfile(PACKAGE / "wit" / "skep-bee.wit", wit / "deps" / "bee" / "skep-bee.wit")
    (wit / "world.wit").write_text(WORLD_WITH_HTTP)
    return wit


def _in_guest(file: Path, said: str) -> Failure:
    """The exception that the file raised in WebAssembly, where it did not here."""
    tracebacks = said.split("Traceback (most recent call last):\n")
    for text in tracebacks[1:]:
        places = re.findall(r'File "/\d+/([^"]+)", line (\d+)', text)
        users = [p for p in places if p[0] != "_skep_app.py" and not p[0].startswith("skep/")]
        error = next((line for line in text.splitlines() if re.match(r"[A-Za-z_.]+(Error|Exception|Exit|Interrupt)\b", line)), "")
        if users and error:
            name, line = users[-1]
            missing = re.search(r"No module named '([^']+)'", error)
            if missing:
                return Failure(
                    f"{name}:{line}: a component has no module `{missing.group(1)}`",
                    f"it is WebAssembly's Python {needs.GUEST_PYTHON}: no ssl, ctypes, subprocess or threads there",
                )
            return Failure(
                f"{name}:{line}: {error}",
                "the file's top level runs in WebAssembly when it is built: no files but those of its folder, no network, no threads",
            )
    end = "\n".join(line for line in said.strip().splitlines() if line.strip())[-1_000:]
    return Failure(f"{file.name}: componentize-py failed:\n{end}", "this may be a defect of skep: the lines above say more")
