"""A node and MLServer with ONNX Runtime behind the Open Inference Protocol, and how soon a large model answers for the first time.

models_beside.py BINARIES MODEL.onnx INPUT COLUMNS: run by `ci/bench models`, in a venv with mlserver, onnxruntime and onnx.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

import mlserver_onnx

BINARIES = Path(sys.argv[1])
STARTS = 5


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def large(path: Path) -> None:
    """784 to 3,344 to 10: ten megabytes of weights, made with a fixed seed."""
    chance = numpy.random.default_rng(7)

    def weights(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array((chance.standard_normal(shape) / 28).astype(numpy.float32), name)

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("Relu", ["h"], ["r"]), helper.make_node("MatMul", ["r", "b"], ["y"])],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 784])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [weights("a", 784, 3344), weights("b", 3344, 10)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


class Node:
    def __init__(self, data: Path) -> None:
        command = [str(BINARIES / "skep"), "serve", "--data", str(data), "--listen", "127.0.0.1:0", "--no-admin"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]

    def push(self, model: Path, name: str) -> None:
        command = [str(BINARIES / "skep"), "model", "push", str(model), "--name", name]
        subprocess.run(command, env={**os.environ, "SKEP_NODE": self.url}, check=True, capture_output=True)

    def infer(self, name: str, body: bytes) -> None:
        with urllib.request.urlopen(f"{self.url}/v2/models/{name}/infer", body) as answer:
            assert json.load(answer)["outputs"]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def cold(folder: Path) -> None:
    """From the first call at a node that has started to its answer: nothing is loaded, the file lies on the disk."""
    model = folder / "large.onnx"
    large(model)
    node = Node(folder / "cold")
    node.push(model, "large")
    node.stop()
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 784], "data": [0.5] * 784}]}).encode()
    took = []
    for _ in range(STARTS):
        node = Node(folder / "cold")
        began = time.perf_counter()
        node.infer("large", body)
        first = time.perf_counter()
        node.infer("large", body)
        took.append((first - began, time.perf_counter() - first))
        node.stop()
    took.sort()
    first, second = took[STARTS // 2]
    print(f"a model of {model.stat().st_size / 1e6:.1f} MB, not loaded: first answer after {first * 1e3:.0f} ms, the next after {second * 1e3:.1f} ms")


def beside(folder: Path, model: Path, given: str, columns: str) -> None:
    http, grpc = free_port(), free_port()
    mlserver_onnx.prepare(folder / "mlserver", model, http, grpc)
    command = [str(Path(sys.executable).parent / "mlserver"), "start", str(folder / "mlserver")]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    peer = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    node = Node(folder / "node")
    try:
        node.push(model, "bench")
        until = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{http}/v2/models/bench/ready") as answer:
                    assert answer.status == 200
                break
            except OSError:
                assert time.monotonic() < until and peer.poll() is None, "MLServer does not start"
                time.sleep(0.2)
        servers = [f"skep={node.url}", f"MLServer=http://127.0.0.1:{grpc}"]
        subprocess.run([str(BINARIES / "skep-bench"), "inference", "bench", given, columns, *servers], check=True)
    finally:
        peer.terminate()
        node.stop()
        peer.wait(30)


with tempfile.TemporaryDirectory() as found:
    cold(Path(found))
    beside(Path(found), Path(sys.argv[2]), sys.argv[3], sys.argv[4])
