"""`install.sh`: what it takes, what it refuses, and what it leaves behind when it is stopped."""

import functools
import hashlib
import http.server
import os
import platform
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

from conftest import run

PROGRAM = f"skep-{platform.machine()}-linux"


def install(files, *words, env=None):
    return run("sh", files / "install.sh", *words, env=env)


def anew(path, content):
    """Another file in its place: the one that was there is shared."""
    path.unlink()
    path.write_bytes(content)


def sums_again(files):
    lines = []
    for path in sorted(files.iterdir()):
        if path.name != "SHA256SUMS":
            lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    anew(files / "SHA256SUMS", "".join(lines).encode())


def laid(prefix):
    """All files below, with content and rights."""
    return {
        str(path.relative_to(prefix)): (hashlib.sha256(path.read_bytes()).hexdigest(), oct(path.stat().st_mode & 0o777), path.stat().st_mtime_ns)
        for path in sorted(prefix.rglob("*"))
        if path.is_file()
    }


def test_it_installs_twice_and_keeps_what_an_operator_wrote(files, tmp_path):
    prefix = tmp_path / "a prefix"
    told = install(files, files, "--prefix", prefix)
    assert told.returncode == 0, told.stderr
    first = laid(prefix)
    assert set(first) == {"bin/skep", "etc/skep/skep.env", "etc/skep/skep.toml", "lib/systemd/system/skep.service"}
    assert first["bin/skep"][1] == "0o755" and first["etc/skep/skep.env"][1] == "0o600"
    assert run(prefix / "bin/skep", "--version").returncode == 0
    unit = (prefix / "lib/systemd/system/skep.service").read_text()
    assert f"ExecStart={prefix}/bin/skep serve --config {prefix}/etc/skep/skep.toml\n" in unit
    assert f"EnvironmentFile=-{prefix}/etc/skep/skep.env\n" in unit and "Documentation=file:///usr/share" in unit
    again = install(files, f"{files}/", "--prefix", prefix)
    assert again.returncode == 0 and "is there already" in again.stdout, again.stdout + again.stderr
    assert laid(prefix) == first
    # A newer release replaces program and unit, and not the settings.
    (prefix / "etc/skep/skep.toml").write_text('data = "/srv/skep"\n')
    anew(files / "skep.service", (files / "skep.service").read_bytes() + b"# newer\n")
    sums_again(files)
    assert install(files, files, "--prefix", prefix).returncode == 0
    assert (prefix / "etc/skep/skep.toml").read_text() == 'data = "/srv/skep"\n'
    assert (prefix / "lib/systemd/system/skep.service").read_text().endswith("# newer\n")
    edge = install(files, files, "--edge", "--prefix", prefix)
    assert edge.returncode == 0 and (prefix / "bin/skep-edge").is_file(), edge.stderr


def test_two_at_once_leave_one_whole_installation(files, tmp_path):
    prefix = tmp_path / "prefix"
    command = ["sh", files / "install.sh", files, "--prefix", prefix]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for child in both:
        out, err = child.communicate(timeout=60)
        assert child.returncode == 0, out + err
    assert hashlib.sha256((prefix / "bin/skep").read_bytes()).digest() == hashlib.sha256((files / PROGRAM).read_bytes()).digest()
    assert len(laid(prefix)) == 4, "no halves"


def refused(files, tmp_path, words, *more, code=1, env=None):
    prefix = tmp_path / "refused"
    told = install(files, files, "--prefix", prefix, *more, env=env)
    assert told.returncode == code and words in told.stderr, told.stdout + told.stderr
    assert not prefix.exists(), "nothing is installed"
    return told


def test_files_that_are_not_what_the_sums_say_are_refused(files, release, tmp_path):
    program, sums = (files / PROGRAM).read_bytes(), (files / "SHA256SUMS").read_text()
    for content in (program + b"\0", program[:-1], program[: len(program) // 2], b"", program[:100] + b"\xff" + program[101:]):
        anew(files / PROGRAM, content)
        refused(files, tmp_path, "is not what SHA256SUMS says")
    anew(files / PROGRAM, program)
    # The last of the files that are installed counts as much as the first.
    anew(files / "skep.env", b"SKEP_ALLOW_INSECURE=true\n")
    refused(files, tmp_path, "skep.env is not what SHA256SUMS says")
    anew(files / "skep.env", (release / "skep.env").read_bytes())
    line = next(line for line in sums.splitlines(keepends=True) if PROGRAM in line)
    for broken, words in (
        (sums.replace(line, ""), "does not name"),
        ("", "does not name"),
        (sums + line, "names skep-"),
        (sums.replace(line, "0" * 64 + line[64:]), "is not what SHA256SUMS says"),
        (sums.replace(line, line[10:]), "gives no SHA-256"),
        (sums.replace(line, "z" * 64 + line[64:]), "not by a SHA-256"),
        (sums.replace(line, line.replace(PROGRAM, f"../{PROGRAM}")), "does not name"),
    ):
        anew(files / "SHA256SUMS", broken.encode())
        refused(files, tmp_path, words)
    anew(files / "SHA256SUMS", sums.encode())
    (files / "skep.service").unlink()
    refused(files, tmp_path, "has no file skep.service")


def test_sums_that_were_changed_with_the_files_are_refused_by_their_own_sum(files, tmp_path):
    known = hashlib.sha256((files / "SHA256SUMS").read_bytes()).hexdigest()
    assert install(files, files, "--prefix", tmp_path / "good", "--sums", known.upper()).returncode == 0
    anew(files / "skep.toml", b"allow-insecure = true\n")
    sums_again(files)
    refused(files, tmp_path, "do not trust", "--sums", known)


def test_programs_of_other_machines_are_refused(files, tmp_path):
    program = bytearray((files / PROGRAM).read_bytes())
    program[18:20] = b"\xf3\x00"
    anew(files / PROGRAM, bytes(program))
    sums_again(files)
    refused(files, tmp_path, "another processor")
    anew(files / PROGRAM, b"#!/bin/sh\nexit 0\n")
    sums_again(files)
    refused(files, tmp_path, "is no program of Linux")
    # As on a machine that no release is for.
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "uname").write_text('#!/bin/sh\n[ "$1" = -m ] && echo riscv64 || echo Linux\n')
    (tools / "uname").chmod(0o755)
    refused(files, tmp_path, "no skep for riscv64", env={"PATH": f"{tools}:{os.environ['PATH']}"})


def test_a_wrong_command_line_says_what_would_do(files, tmp_path):
    for words, code, said in (
        ((), 2, "say where"),
        (("--nonsense",), 2, "there is no --nonsense"),
        ((files, files), 2, "one place is enough"),
        ((files, "--prefix"), 2, "needs a word"),
        ((tmp_path / "gone", "--prefix", tmp_path / "p"), 1, "is no folder"),
        (("ftp://host/skep", "--prefix", tmp_path / "p"), 1, "no address that this takes"),
        (("http://127.0.0.1:1", "--prefix", tmp_path / "p"), 1, "changed by anybody on the way"),
        (("http://127.0.0.1:1", "--allow-http", "--prefix", tmp_path / "p"), 1, "goes with --sums only"),
        (("https://127.0.0.1:1", "--prefix", tmp_path / "p"), 1, "cannot get https://127.0.0.1:1/SHA256SUMS"),
    ):
        told = install(files, *words)
        assert told.returncode == code and said in told.stderr, (words, told.stdout, told.stderr)
    assert not (tmp_path / "p").exists()
    assert "usage:" in install(files, "--help").stdout
    # A copy that is cut short does nothing, wherever it ends.
    script = (files / "install.sh").read_bytes()
    for end in (len(script) - len(b'main "$@"\n'), len(script) * 3 // 4, len(script) // 2):
        cut = tmp_path / "cut.sh"
        cut.write_bytes(script[:end])
        run("sh", cut, files, "--prefix", tmp_path / "p")
        assert not (tmp_path / "p").exists(), end


class Server:
    """A release by HTTP; `slow` sends the program byte by byte until it is told to go on."""

    def __init__(self, files):
        self.asked, self.slow, self.half = threading.Event(), False, False
        server = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self):
                if PROGRAM in self.path and (server.slow or server.half):
                    content = (files / PROGRAM).read_bytes()
                    self.send_response(200)
                    self.send_header("content-length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content[: len(content) // 2])
                    self.wfile.flush()
                    server.asked.set()
                    if server.slow:
                        time.sleep(20)
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                super().do_GET()

            def log_message(self, *_):
                pass

        handler = functools.partial(Handler, directory=str(files))
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


# What the script may use, beside something to download with.
TOOLS = "sh cat head od tr awk sha256sum cut mktemp rm cp mv mkdir chmod cmp sed sync id uname dirname basename".split()


def where_there_is(tool):
    return pytest.param(tool, marks=pytest.mark.skipif(not shutil.which(tool), reason=f"{tool} is not here"))


@pytest.mark.parametrize("tool", [where_there_is("curl"), where_there_is("wget")])
def test_by_http_with_known_sums_whole_cut_and_interrupted(files, tmp_path, tool):
    server = Server(files)
    # A machine that has one of the two.
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in [*TOOLS, tool]:
        (tools / name).symlink_to(shutil.which(name))
    known = hashlib.sha256((files / "SHA256SUMS").read_bytes()).hexdigest()
    words = (server.url, "--allow-http", "--sums", known)
    rooms = tmp_path / "tmp"
    rooms.mkdir()
    env = {"TMPDIR": str(rooms), "no_proxy": "127.0.0.1", "PATH": str(tools)}
    told = install(files, *words, "--prefix", tmp_path / "whole", env=env)
    assert told.returncode == 0 and (tmp_path / "whole/bin/skep").is_file(), told.stderr
    server.half = True
    told = install(files, *words, "--prefix", tmp_path / "half", env=env)
    assert told.returncode == 1 and "cannot get" in told.stderr, told.stderr
    server.half, server.slow = False, True
    # wget takes a hang-up for the wish to go on in the background.
    for kill in (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if tool == "curl" else [])):
        server.asked.clear()
        child = subprocess.Popen(
            ["sh", files / "install.sh", *words, "--prefix", tmp_path / "half"],
            env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )
        assert server.asked.wait(30)
        # As a terminal does: to all of the session's foreground.
        os.killpg(child.pid, kill)
        child.communicate(timeout=30)
        assert child.returncode != 0
    assert not (tmp_path / "half").exists()
    assert list(rooms.iterdir()) == [], "what was downloaded is gone"
    server.http.shutdown()


def test_a_full_disk_or_a_closed_folder_leaves_what_was_there(files, tmp_path):
    prefix = tmp_path / "prefix"
    assert install(files, files, "--prefix", prefix).returncode == 0
    before = laid(prefix)
    newer = (files / "skep.service").read_bytes() + b"# newer\n"
    anew(files / "skep.service", newer)
    sums_again(files)
    # A file larger than 1 KiB cannot be written, as on a full disk: the last step, a rename, is not reached.
    told = run("sh", "-c", 'ulimit -f 1; trap "" XFSZ; exec sh "$0" "$1" --prefix "$2"', files / "install.sh", files, prefix)
    assert told.returncode != 0
    assert laid(prefix) == before
    assert not [path for path in prefix.rglob("*.half")], "no half of a file is left"


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root, to become somebody else")
def test_somebody_who_is_not_root_needs_a_prefix(files, tmp_path):
    import tempfile

    # Not below the test's folder, which nobody else may enter.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as room:
        copy = shutil.copytree(files, f"{room}/files")
        os.chmod(room, 0o755)
        home = f"{room}/home"
        os.mkdir(home)
        os.chown(home, 65534, 65534)
        nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        env = {"HOME": home, "TMPDIR": "/var/tmp"}
        told = run(*nobody, "sh", f"{copy}/install.sh", copy, env=env, cwd="/")
        assert told.returncode == 1 and "only root" in told.stderr and "--prefix" in told.stderr, told.stderr
        told = run(*nobody, "sh", f"{copy}/install.sh", copy, "--prefix", f"{home}/.local", env=env, cwd="/")
        assert told.returncode == 0 and os.stat(f"{home}/.local/bin/skep").st_uid == 65534, told.stderr
        # Where it may not write, it says so.
        os.mkdir(f"{room}/closed")
        told = run(*nobody, "sh", f"{copy}/install.sh", copy, "--prefix", f"{room}/closed", env=env, cwd="/")
        assert told.returncode != 0 and "Permission denied" in told.stderr and not os.listdir(f"{room}/closed"), told.stderr
