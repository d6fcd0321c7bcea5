"""An .onnx file in a test, run by onnxruntime and checked as a node checks it. No part of a component."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from typing import Any

from .models import BadInput, Port, Signature, Tensor, model_error

_TYPES = {
    "float": "FP32",
    "double": "FP64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "bool": "BOOL",
    "string": "BYTES",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class Onnx:
    """A model of a DevSwarm that is a file."""

    def __init__(self, name: str, path: str | PathLike[str]) -> None:
        try:
            import numpy
            import onnxruntime
        except ImportError as e:
            raise model_error(
                "unavailable",
                f"a DevSwarm runs {fspath(path)} with onnxruntime, which is not here ({e}): `pip install onnxruntime`, or give a function "
                "instead of the path",
            ) from None
        if not Path(path).is_file():
            raise model_error("not-found", f"there is no file {fspath(path)} for model {name!r}")
        self._numpy: Any = numpy
        try:
            self._session = onnxruntime.InferenceSession(fspath(path), providers=["CPUExecutionProvider"])
        except Exception as e:
            raise model_error("failed", f"{fspath(path)} cannot be loaded: {e}") from None
        self.signature = Signature(self._ports(self._session.get_inputs()), self._ports(self._session.get_outputs()))

    def _ports(self, nodes: Any) -> tuple[Port, ...]:
        found = []
        for node in nodes:
            kind = str(node.type).removeprefix("tensor(").removesuffix(")")
            if kind not in _TYPES:
                text = f"{node.name!r} of the model is a {node.type}, and a node takes tensors only: export it without (zipmap=False)"
                raise model_error("failed", text)
            shape = tuple(dim if isinstance(dim, int) else None for dim in node.shape or ())
            found.append(Port(node.name, _TYPES[kind], shape))
        return tuple(found)

    def __call__(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        ports = {port.name: port for port in self.signature.inputs}
        for name, tensor in inputs.items():
            if name not in ports:
                raise BadInput(f"there is no input {name!r}: the inputs are {', '.join(ports)}")
            port = ports[name]
            same = len(port.shape) == len(tensor.shape) and all(want in (None, got) for want, got in zip(port.shape, tensor.shape))
            if port.dtype != tensor.dtype or not same:
                raise BadInput(f"input {name!r} is {tensor.dtype} {list(tensor.shape)}: expected {port}")
            if 0 in tensor.shape:
                got = f"{tensor.dtype} {list(tensor.shape)}"
                raise BadInput(f"input {name!r} is {got}: a dimension of zero leaves nothing to work on; send at least one row")
        for name, port in ports.items():
            if name not in inputs:
                raise BadInput(f"input {name!r} is missing: expected {port}")
        try:
            answers = self._session.run(None, {name: self._array(tensor) for name, tensor in inputs.items()})
        except Exception as e:
            raise model_error("failed", f"the model failed: {e}") from None
        return {port.name: self._tensor(answer) for port, answer in zip(self.signature.outputs, answers)}

    def _array(self, tensor: Tensor) -> Any:
        if tensor.dtype == "BYTES":
            return self._numpy.array(tensor.flat(), dtype=object).reshape(tensor.shape)
        return self._numpy.array(tensor)

    def _tensor(self, answer: Any) -> Tensor:
        if answer.dtype.kind in "OUS":
            return Tensor([str(text) for text in answer.flat], shape=answer.shape, dtype="BYTES")
        return Tensor(self._numpy.ascontiguousarray(answer), shape=answer.shape)
