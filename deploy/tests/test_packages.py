"""Debian packages: what is in them, with which rights, and what they do at an installation."""

import hashlib
import os
import platform
import re
import shutil
import stat
import tomllib

import pytest

from conftest import DEPLOY, TREE, binary, run

VERSION = tomllib.loads((TREE / "Cargo.toml").read_text())["workspace"]["package"]["version"]
DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


def package(release, name):
    return release / f"{name}_{VERSION}-1_{DEBIAN}.deb"


def field(deb, name):
    return run("dpkg-deb", "--field", deb, name).stdout.strip()


def listed(deb):
    """Path to mode and owner."""
    found = {}
    for line in run("dpkg-deb", "--contents", deb).stdout.splitlines():
        mode, owner, _, _, _, path = line.split(maxsplit=5)
        found[path.removeprefix(".")] = (mode, owner)
    return found


@pytest.mark.parametrize("name", ["skep", "skep-edge"])
def test_a_package_has_program_unit_settings_and_licence(release, name, tmp_path):
    deb = package(release, name)
    assert field(deb, "Version") == f"{VERSION}-1" and field(deb, "Architecture") == DEBIAN
    assert "adduser" in field(deb, "Depends")
    files = listed(deb)
    assert files[f"/usr/bin/{name}"] == ("-rwxr-xr-x", "0/0")
    assert files[f"/usr/lib/systemd/system/{name}.service"] == ("-rw-r--r--", "0/0")
    assert f"/usr/share/doc/{name}/copyright" in files and f"/usr/share/doc/{name}/docs/install.md" in files
    assert files[f"/etc/skep/{name}.env"][0] == ("-rw-------" if name == "skep" else "-rw-r--r--")
    # Nothing in it may be written by others, run with another's rights, or lie where packages have no business.
    for path, (mode, owner) in files.items():
        assert owner == "0/0" and mode[8] != "w" and "s" not in mode.lower(), (path, mode, owner)
        assert path.startswith(("/usr/", "/etc/skep")) or path in ("/", "/etc/"), path
    control = tmp_path / "control"
    run("dpkg-deb", "--control", deb, control)
    conffiles = set((control / "conffiles").read_text().split())
    assert conffiles == {path for path in files if path.startswith("/etc/skep/") and not path.endswith("/")}
    # The scripts are those of the tree, and sound.
    for script in ("postinst", "prerm", "postrm"):
        assert (control / script).read_text() == (DEPLOY / "debian" / name / script).read_text()
        assert run("dash", "-n", control / script).returncode == 0
        assert (control / script).stat().st_mode & stat.S_IXUSR
    # An installation starts nothing: a node that nobody has looked at yet would listen.
    assert not re.search(r"\b(enable|start)\b.*\.service", (control / "postinst").read_text().replace("restart", ""))
    # What is in it runs.
    unpacked = tmp_path / "unpacked"
    run("dpkg-deb", "--extract", deb, unpacked)
    assert run(unpacked / "usr/bin" / name, "--version").stdout == f"{name} {VERSION}\n"


def test_the_unit_starts_the_program_with_settings_that_it_takes(release, tmp_path):
    unpacked = tmp_path / "unpacked"
    run("dpkg-deb", "--extract", package(release, "skep"), unpacked)
    settings = (unpacked / "etc/skep/skep.toml").read_text()
    # As it is, and with every line that is there to be taken: all are settings.
    taken = re.sub(r"^# (?=[a-z-]+ = )", "", settings, flags=re.MULTILINE)
    assert taken.count("\n# ") < settings.count("\n# ")
    for text in (settings, taken):
        found = tomllib.loads(text)
        assert found["data"] == "/var/lib/skep"
        file = tmp_path / "skep.toml"
        file.write_text(text)
        # Not the stores that are named there: those are of whoever installs.
        env = {"SKEP_BACKEND": "embedded", "SKEP_ARTIFACTS": str(tmp_path / "modules")}
        told = run(unpacked / "usr/bin/skep", "self", "check", "--config", file, "--data", tmp_path / "data", "-o", "json", env=env)
        assert told.returncode in (0, 1), told.stderr
        assert '"findings"' in told.stdout


def test_sums_are_over_all_files_and_two_runs_give_the_same(release, tmp_path):
    lines = (release / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert set(sums) == {path.name for path in release.iterdir()} - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((release / name).read_bytes()).hexdigest() == digest, name
    again = tmp_path / "again"
    made = run("ci/packages", binary("skep-edge"), env={"OUT": str(again), "FAST": "1"})
    assert made.returncode == 0, made.stderr
    name = package(release, "skep-edge").name
    assert hashlib.sha256((again / name).read_bytes()).hexdigest() == sums[name]
    assert not list(again.parent.glob("**/*.half"))


def test_what_is_no_program_of_this_release_is_refused(tmp_path):
    program = binary("skep-edge").read_bytes()

    def refused(name, content, words):
        file = tmp_path / name
        file.write_bytes(content)
        file.chmod(0o755)
        made = run("ci/packages", file, env={"OUT": str(tmp_path / "out"), "FAST": "1"})
        assert made.returncode == 1 and words in made.stderr, made.stdout + made.stderr
        assert not (tmp_path / "out").exists()

    refused("empty", b"", "is no program of Linux")
    refused("script", b"#!/bin/sh\necho skep-edge 0.1.0\n", "is no program of Linux")
    refused("riscv", program[:18] + b"\xf3\x00" + program[20:], "neither for x86-64 nor for aarch64")
    refused("cut", program[: len(program) // 2], "does not run here")
    other = shutil.which("true")
    with open(other, "rb") as file:
        refused("true", file.read(), "is neither skep nor skep-edge")
    made = run("ci/packages", tmp_path / "gone", env={"OUT": str(tmp_path / "out")})
    assert made.returncode != 0 and "gone" in made.stderr


def test_a_folder_with_other_things_is_not_replaced(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "letter").write_text("dear")
    made = run("ci/packages", binary("skep-edge"), env={"OUT": str(own), "FAST": "1"})
    assert made.returncode == 1 and "would be replaced" in made.stderr, made.stderr
    assert [path.name for path in own.iterdir()] == ["letter"]


def test_a_program_for_the_other_processor_becomes_a_package_for_it(tmp_path):
    program = bytearray(binary("skep-edge").read_bytes())
    machine, debian, name = {"x86_64": (0xB7, "arm64", "aarch64"), "aarch64": (0x3E, "amd64", "x86_64")}[platform.machine()]
    program[18] = machine
    folder = tmp_path / "built"
    folder.mkdir()
    (folder / "skep-edge").write_bytes(program)
    out = tmp_path / "out"
    made = run("ci/packages", folder / "skep-edge", env={"OUT": str(out), "FAST": "1"})
    assert made.returncode == 0, made.stderr
    deb = out / f"skep-edge_{VERSION}-1_{debian}.deb"
    assert field(deb, "Architecture") == debian
    assert (out / f"skep-edge-{name}-linux").is_file() and os.access(out / "install.sh", os.X_OK)
