"""Units, Dockerfiles and Kubernetes' manifests, as those who read them would."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from conftest import DEPLOY, binary, run

BIN = os.path.dirname(sys.executable)
BASE = DEPLOY / "kubernetes" / "base"
# Exposure by `systemd-analyze security`, 0 to 10, in tenths. Named so that nobody raises it unseen; what is left is said in docs/install.md.
EXPOSURE_MAX = {"skep": 18, "skep-edge": 14}

systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze (Debian's package systemd) is not installed")


def unit(name):
    """Every setting of a unit, as a list of what it is set to."""
    found = {}
    for line in (DEPLOY / "systemd" / f"{name}.service").read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            found.setdefault(key, []).append(value)
    return found


@systemd
@pytest.mark.parametrize("name", ["skep", "skep-edge"])
def test_a_unit_is_sound_and_shut_in(name, tmp_path):
    text = (DEPLOY / "systemd" / f"{name}.service").read_text()
    # It looks whether the program is there; its place is that of this build.
    own = tmp_path / f"{name}.service"
    own.write_text(text.replace(f"ExecStart=/usr/bin/{name} ", f"ExecStart={binary(name)} "))
    told = run("systemd-analyze", "verify", "--man=no", own)
    complaints = [line for line in (told.stdout + told.stderr).splitlines() if f"{name}.service" in line]
    assert told.returncode == 0 and not complaints, told.stdout + told.stderr
    told = run("systemd-analyze", "security", "--offline=yes", "--no-pager", f"--threshold={EXPOSURE_MAX[name]}", own)
    assert told.returncode == 0, told.stdout + told.stderr


def test_units_leave_what_a_node_needs():
    node = unit("skep")
    # Each of these was tried the other way, and something did not work: see the unit.
    assert node["MemoryDenyWriteExecute"] == ["no"], "no Bee could run"
    assert node["KillMode"] == ["mixed"], "tenants' processes would be told to end before the node"
    assert node["OOMPolicy"] == ["continue"], "a tenant's process out of memory would stop the node"
    assert "ProtectProc" not in node and "ProcSubset" not in node, "the node could not look at tenants' processes"
    calls = " ".join(node["SystemCallFilter"])
    assert "@ipc" not in calls, "it has pipe2 in it, without which no process can be started"
    for call in ("seccomp", "landlock_create_ruleset", "landlock_restrict_self", "capset"):
        assert call in node["SystemCallFilter"][-1].split(), "compilers and tenants' processes could not shut themselves in"
    # Longer than the node takes itself: calls under way (GRACE), twice, and a batch (its default timeout).
    source = (DEPLOY.parent / "runtime/src/node.rs").read_text()
    grace = int(re.search(r"const GRACE: Duration = Duration::from_secs\((\d+)\)", source)[1])
    assert int(node["TimeoutStopSec"][0]) > 2 * grace + 30


@pytest.mark.parametrize("name", ["skep", "skep-edge"])
def test_a_dockerfile_is_sound_checks_what_it_copies_and_runs_as_nobody(name):
    file = DEPLOY / "container" / f"{name}.Dockerfile"
    # DL3008 wants versions of Debian's packages pinned; those of a stable release are replaced by fixes of security only.
    told = run(f"{BIN}/hadolint", "--ignore", "DL3008", file)
    assert told.returncode == 0, told.stdout + told.stderr
    text = file.read_text()
    assert "sha256sum --check --strict" in text and text.index("sha256sum --check") < text.rindex("FROM ")
    last = text[text.rindex("FROM ") :]
    assert re.search(r"^USER (?!0\b)\d+:(?!0\b)\d+$", last, re.MULTILINE) and "HEALTHCHECK" in last and "ADD " not in text


def documents():
    return [(path.name, document) for path in sorted(BASE.glob("*.yaml")) for document in yaml.safe_load_all(path.read_text())]


def nodes():
    (found,) = [document for _, document in documents() if document["kind"] == "StatefulSet"]
    return found["spec"]


@pytest.mark.parametrize("version", ["1.30.0", "1.37.0"])
def test_manifests_are_as_kubernetes_says(version):
    files = [path for path in sorted(BASE.glob("*.yaml")) if path.name != "kustomization.yaml"]
    told = run(f"{BIN}/kubernetes-validate", "--strict", "--kubernetes-version", version, *files)
    assert told.returncode == 0, told.stdout + told.stderr
    # What the base lists is what is there.
    listed = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(path.name for path in files)


def test_a_wrong_manifest_would_be_found(tmp_path):
    text = (BASE / "nodes.yaml").read_text()
    for before, after in (("serviceName:", "serviceNam:"), ("replicas: 3", "replicas: three"), ("periodSeconds: 2", "periodSecond: 2")):
        assert before in text
        wrong = tmp_path / "nodes.yaml"
        wrong.write_text(text.replace(before, after))
        assert run(f"{BIN}/kubernetes-validate", "--strict", wrong).returncode != 0, after


def test_pods_are_restricted_and_have_what_they_name():
    pod = nodes()["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert pod["automountServiceAccountToken"] is False
    volumes = {volume["name"] for volume in pod["volumes"]} | {claim["metadata"]["name"] for claim in nodes()["volumeClaimTemplates"]}
    for container in pod["containers"] + pod["initContainers"]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"] and context["capabilities"]["drop"] == ["ALL"]
        assert "memory" in container["resources"]["limits"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    (node,) = pod["containers"]
    stop = int(node["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= stop + int(unit("skep")["TimeoutStopSec"][0])
    # Every port that something names is one that a container has.
    ports = {port["name"]: port["containerPort"] for port in node["ports"]}
    probes = [node[kind]["httpGet"]["port"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")]
    services = [port["targetPort"] for _, document in documents() if document["kind"] == "Service" for port in document["spec"]["ports"]]
    rules = [rule for _, document in documents() if document["kind"] == "NetworkPolicy" for rule in document["spec"]["ingress"]]
    policy = [port["port"] for rule in rules for port in rule["ports"]]
    assert set(probes + services + policy) <= set(ports)
    # One selector: what a service, a budget and a policy choose are these pods.
    labels = nodes()["template"]["metadata"]["labels"]
    for name, document in documents():
        chosen = document["spec"].get("selector") or document["spec"].get("podSelector") if "spec" in document else None
        if chosen:
            assert (chosen.get("matchLabels") or chosen).items() <= labels.items(), name


def test_variables_of_pods_are_flags_of_serve():
    told = run(binary("skep"), "serve", "--help").stdout
    known = set(re.findall(r"\[env: (SKEP_[A-Z_]+)", told))
    example = yaml.safe_load((DEPLOY / "kubernetes/example/kustomization.yaml").read_text())
    (node,) = nodes()["template"]["spec"]["containers"]
    named = [variable["name"] for variable in node["env"]]
    named += [literal.split("=")[0] for made in example["configMapGenerator"] for literal in made.get("literals", [])]
    named += re.findall(r"\b(SKEP_[A-Z_]+)=", (DEPLOY / "skep.env").read_text())
    assert "SKEP_LISTEN" in named and {name for name in named if name.startswith("SKEP_")} <= known | {"SKEP_LOG"}


def test_a_node_takes_the_settings_of_a_pod(tmp_path):
    """All of them at once, but for the stores, which are of whoever installs: `self check` reads them as `serve` does."""
    (node,) = nodes()["template"]["spec"]["containers"]
    skep = binary("skep")
    assert run(skep, "certs", "dev", tmp_path / "certs").returncode == 0
    keys = tmp_path / "keys"
    keys.mkdir()
    for name, text in (("operator.token", run(skep, "token", "generate").stdout), ("secrets.keys", "ab" * 32 + "\n")):
        (keys / name).write_text(text)
        (keys / name).chmod(0o400)
    tls = {"/tls/tls.crt": "certs/node.pem", "/tls/tls.key": "certs/node.key", "/tls/ca.crt": "certs/ca.pem"}
    places = {**tls, "/keys/": "keys/", "/var/lib/skep": "data"}
    env = {}
    for variable in node["env"]:
        value = variable.get("value", "skep-0")
        for inside, here in places.items():
            value = value.replace(inside, f"{tmp_path}/{here}")
        env[variable["name"]] = value.replace(":4020", ":0").replace(":4021", ":0")
    told = run(skep, "self", "check", env=env)
    assert told.returncode == 0, told.stdout + told.stderr
    assert f"{tmp_path}/keys/secrets.keys has the keys" in told.stdout and "is good until" in told.stdout, told.stdout


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl, which puts the example together, is not installed")
def test_the_example_comes_together(tmp_path):
    shutil.copytree(DEPLOY / "kubernetes", tmp_path / "kubernetes")
    example = tmp_path / "kubernetes/example"
    assert run("kubectl", "kustomize", example).returncode != 0, "its secrets are not in the tree"
    for name in ("stores.env", "operator.token", "secrets.keys", "tls.crt", "tls.key", "ca.crt"):
        (example / name).write_text("SKEP_BACKEND=redis://redis:6379\n" if name == "stores.env" else f"{name}\n")
    told = run("kubectl", "kustomize", example)
    assert told.returncode == 0, told.stderr
    (tmp_path / "all.yaml").write_text(told.stdout)
    checked = run(f"{BIN}/kubernetes-validate", "--strict", tmp_path / "all.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    made = list(yaml.safe_load_all(told.stdout))
    assert {document["metadata"].get("namespace") for document in made if document["kind"] != "Namespace"} == {"skep"}
    # The names that were made longer by what is in them are the ones that the pods ask for.
    (pod,) = [document["spec"]["template"]["spec"] for document in made if document["kind"] == "StatefulSet"]
    secrets = {document["metadata"]["name"] for document in made if document["kind"] == "Secret"}
    asked = {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    asked |= {source["secretRef"]["name"] for source in pod["containers"][0]["envFrom"] if "secretRef" in source}
    assert asked == secrets and len(secrets) == 3
    assert {container["image"] for container in pod["containers"] + pod["initContainers"]} == {"registry.example.org/skep:0.1.0"}


def test_scripts_are_sound():
    for script in [DEPLOY / "install.sh", *sorted((DEPLOY / "debian").glob("*/*"))]:
        assert run("dash", "-n", script).returncode == 0, script
        assert os.access(script, os.X_OK), script
    assert subprocess.run(["bash", "-n", DEPLOY.parent / "ci/packages"]).returncode == 0
