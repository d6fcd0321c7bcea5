"""A project to start from."""

from __future__ import annotations

import re
from pathlib import Path

from .failure import Failure

TEMPLATE = Path(__file__).parent / "template"
FILES = {"bee.py": "{name}.py", "test_bee.py": "test_{name}.py", "swarm.yaml": "swarm.yaml", "README.md": "README.md", "gitignore": ".gitignore"}


def new(name: str, path: Path | None) -> tuple[Path, list[str]]:
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name):
        raise Failure(
            f"`{name}` is not a name", "it serves as file, Bee, Swarm and subject: begin with a letter, use a-z, 0-9 and -, like `my-bee`"
        )
    folder = path or Path(name)
    file = name.replace("-", "_")
    written = []
    targets = {source: folder / target.format(name=file) for source, target in FILES.items()}
    taken = next((t for t in targets.values() if t.exists()), None)
    if taken is not None:
        raise Failure(f"{taken} is there already: nothing was written", "choose another folder with --path")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source, target in targets.items():
            text = (TEMPLATE / f"{source}.tmpl").read_text().replace("{{name}}", name).replace("{{file}}", file)
            with open(target, "x") as out:
                out.write(text)
            written.append(target.name)
    except OSError as e:
        raise Failure(f"cannot write in {folder}: {e.strerror}", "choose another folder with --path") from None
    return folder, written
