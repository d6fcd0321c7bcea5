"""ONNX Runtime behind MLServer: a custom runtime of its usual form, to be measured beside skep. See `prepare` for how it is started."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Onnx(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        # One row a call: a second thread for it only waits.
        options.intra_op_num_threads = 1
        assert self.settings.parameters is not None
        self.session = onnxruntime.InferenceSession(self.settings.parameters.uri, options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        given = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        found = self.session.run(self.names, given)
        outputs = [NumpyCodec.encode_output(name, value) for name, value in zip(self.names, found)]
        return InferenceResponse(model_name=self.name, outputs=outputs)


def prepare(folder: Path, model: Path, http_port: int, grpc_port: int) -> None:
    """Writes what `PYTHONPATH=HERE mlserver start FOLDER` reads. All else is as MLServer has it."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"http_port": http_port, "grpc_port": grpc_port, "metrics_port": grpc_port + 1, "host": "127.0.0.1", "debug": False}
    # In the server's own process: its pool of others does not start on every Python, and costs a call a way there and back.
    settings["parallel_workers"] = 0
    (folder / "settings.json").write_text(json.dumps(settings))
    model_settings = {"name": "bench", "implementation": "mlserver_onnx.Onnx", "parameters": {"uri": str(model.resolve())}}
    (folder / "model-settings.json").write_text(json.dumps(model_settings))


if __name__ == "__main__":
    # mlserver_onnx.py FOLDER MODEL.onnx HTTP_PORT GRPC_PORT
    prepare(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
