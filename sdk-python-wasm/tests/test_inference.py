"""The Open Inference Protocol from outside: tritonclient as it is published, against a real node."""

from __future__ import annotations

import json
import queue
from pathlib import Path

import numpy
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from skep import Admin, Gateway, GatewayError, ResourceNotFound

BEES = Path(__file__).parent / "inference" / "bees.py"

SWARM = """
name: inference
bees:
  - { name: double, module: inference, input: { gateway: double } }
  - { name: label, module: inference, input: { gateway: label } }
  - { name: angry, module: inference, input: { gateway: angry }, retry: { attempts: 1 } }
"""

ROWS = numpy.array([[1.0, -2.5], [float("inf"), 0.25]], dtype=numpy.float32)


@pytest.fixture(scope="module", autouse=True)
def swarm(node):
    with Admin(node.url) as admin:
        admin.push(BEES, name="inference")
        admin.apply(SWARM)


@pytest.fixture(params=["http", "grpc"])
def triton(request, node):
    """The two clients have one interface, but for a few words."""
    module = {"http": tritonclient.http, "grpc": tritonclient.grpc}[request.param]
    client = module.InferenceServerClient(node.url.removeprefix("http://"))
    client.words = module
    yield client
    client.close()


def given(words, rows=ROWS, name="x", **how):
    tensor = words.InferInput(name, list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows, **how)
    return [tensor]


def status(error) -> str:
    """HTTP's, or gRPC's."""
    return str(error.value.status()).removeprefix("StatusCode.")


def test_the_server_says_what_it_is(triton):
    assert triton.is_server_live() and triton.is_server_ready()
    said = triton.get_server_metadata()
    assert (said["name"] if isinstance(said, dict) else said.name) == "skep"
    assert triton.is_model_ready("subject.double")
    assert not triton.is_model_ready("subject.nothing") and not triton.is_model_ready("nothing")
    said = triton.get_model_metadata("subject.double")
    assert (said["platform"] if isinstance(said, dict) else said.platform) == "skep-swarm"
    index = triton.get_model_repository_index()
    names = [entry["name"] for entry in index] if isinstance(index, list) else [entry.name for entry in index.models]
    assert {"subject.double", "subject.label", "subject.angry"} <= set(names)


def test_a_swarm_is_called_as_a_model(triton):
    answer = triton.infer("subject.double", given(triton.words), request_id="a1")
    numpy.testing.assert_array_equal(answer.as_numpy("x2"), 2 * ROWS)
    said = answer.get_response()
    assert (said["id"] if isinstance(said, dict) else said.id) == "a1"
    wanted = [triton.words.InferRequestedOutput("x2")]
    answer = triton.infer("subject.double", given(triton.words), outputs=wanted)
    numpy.testing.assert_array_equal(answer.as_numpy("x2"), 2 * ROWS)


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("taken", [True, False])
def test_in_json_and_in_binary(node, sent, taken):
    finite = ROWS[:1]
    wanted = [tritonclient.http.InferRequestedOutput("x2", binary_data=taken)]
    with tritonclient.http.InferenceServerClient(node.url.removeprefix("http://")) as client:
        answer = client.infer("subject.double", given(tritonclient.http, finite, binary_data=sent), outputs=wanted)
        numpy.testing.assert_array_equal(answer.as_numpy("x2"), 2 * finite)
        assert ("data" in answer.get_output("x2")) != taken
        if not taken:
            with pytest.raises(InferenceServerException, match="JSON has no word: ask for binary data"):
                client.infer("subject.double", given(tritonclient.http), outputs=wanted)


def test_what_is_no_answer_of_the_protocol_is_one_output(node):
    with tritonclient.http.InferenceServerClient(node.url.removeprefix("http://")) as client:
        answer = client.infer("subject.label", given(tritonclient.http, ROWS[:1], binary_data=False))
        assert answer.as_numpy("response").tolist() == [b'{"label":"bee","inputs":["x"]}']


def test_what_goes_wrong_is_said(triton):
    http = triton.words is tritonclient.http
    for name, code, says in [
        ("nothing", "404" if http else "NOT_FOUND", "no model `nothing"),
        ("subject.nothing", "404" if http else "NOT_FOUND", "no subject `nothing`"),
        ("subject.angry", "500" if http else "FAILED_PRECONDITION", "stage `angry` failed"),
    ]:
        with pytest.raises(InferenceServerException, match=says) as failed:
            triton.infer(name, given(triton.words))
        assert status(failed) == code
    with pytest.raises(InferenceServerException, match="there is no output") as failed:
        triton.infer("subject.double", given(triton.words), outputs=[triton.words.InferRequestedOutput("y")])
    assert status(failed) == ("400" if http else "INVALID_ARGUMENT")
    with pytest.raises(InferenceServerException, match="262144") as failed:
        triton.infer("subject.double", given(triton.words, numpy.zeros([300, 300], dtype=numpy.float32)))
    assert status(failed) == ("413" if http else "INVALID_ARGUMENT")
    with pytest.raises(InferenceServerException, match="sequence_id") as failed:
        triton.infer("subject.double", given(triton.words), sequence_id=5, sequence_start=True)
    assert status(failed) == ("501" if http else "UNIMPLEMENTED")
    for ask in [triton.get_inference_statistics, triton.get_model_config, triton.load_model, triton.get_trace_settings]:
        with pytest.raises(InferenceServerException) as failed:
            ask("x")
        assert status(failed) == ("501" if http else "UNIMPLEMENTED")
    for ask in [triton.get_system_shared_memory_status, triton.get_log_settings]:
        with pytest.raises(InferenceServerException) as failed:
            ask()
        assert status(failed) == ("501" if http else "UNIMPLEMENTED")
    if http:
        with pytest.raises(InferenceServerException, match="compressed") as failed:
            triton.infer("subject.double", given(triton.words), request_compression_algorithm="gzip")
        assert status(failed) == "415"


def test_a_stream_of_calls(node):
    answers: queue.Queue = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(node.url.removeprefix("http://")) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for at in range(20):
            name = "subject.angry" if at == 7 else "subject.double"
            client.async_stream_infer(name, given(tritonclient.grpc, at * ROWS[:1]), request_id=str(at))
        for at in range(20):
            result, error = answers.get(timeout=30)
            if at == 7:
                assert result is None and "stage `angry` failed" in str(error)
            else:
                assert error is None and result.get_response().id == str(at)
                numpy.testing.assert_array_equal(result.as_numpy("x2"), 2 * at * ROWS[:1])
        client.stop_stream()


MODELS = Path(__file__).parents[2] / "samples" / "models"

#: A Bee that asks a model, a model between nothing and nothing, and an answer for whoever has no client of the protocol.
MODEL_SWARM = """
name: served
bees:
  - { name: grade, module: inference, input: { gateway: grade }, models: [flowers, "cancer:v2"], retry: { attempts: 1 } }
  - { name: bare, model: flowers, input: { gateway: bare } }
"""


@pytest.fixture(scope="module")
def served(node, swarm):
    """Models, two versions of one, and Swarms that call them."""
    for model, name, tag in [("iris", "flowers", "latest"), ("cancer-linear", "cancer", "latest"), ("cancer-mlp", "cancer", "v2")]:
        node.skep("model", "push", str(MODELS / f"{model}.onnx"), "--name", name, "--tag", tag)
    with Admin(node.url) as admin:
        admin.apply(MODEL_SWARM)
    return json.loads((MODELS / "expected.json").read_text())


def rows_of(expected):
    rows = numpy.array(expected["data"], dtype=numpy.float32).reshape(expected["shape"])
    return rows, numpy.array(expected["probabilities"], dtype=numpy.float32).reshape(len(rows), -1)


def test_a_model_answers_as_its_trainer_says(triton, served):
    assert triton.is_model_ready("flowers") and triton.is_model_ready("cancer", "v2")
    said = triton.get_model_metadata("flowers")
    shape = said["inputs"][0]["shape"] if isinstance(said, dict) else list(said.inputs[0].shape)
    assert [int(dim) for dim in shape] == [-1, 4]
    rows, probabilities = rows_of(served["iris"])
    answer = triton.infer("flowers", given(triton.words, rows, "features"))
    numpy.testing.assert_allclose(answer.as_numpy("probabilities"), probabilities, atol=1e-5)
    assert answer.as_numpy("label").tolist() == served["iris"]["label"]
    for version, of in [("", "cancer-linear"), ("latest", "cancer-linear"), ("v2", "cancer-mlp")]:
        rows, probabilities = rows_of(served[of])
        answer = triton.infer("cancer", given(triton.words, rows, "features"), model_version=version)
        numpy.testing.assert_allclose(answer.as_numpy("probabilities"), probabilities, atol=1e-5)
    index = triton.get_model_repository_index()
    names = [entry["name"] for entry in index] if isinstance(index, list) else [entry.name for entry in index.models]
    assert {"flowers", "cancer", "subject.bare"} <= set(names)


def test_a_swarm_that_is_a_model_and_one_that_asks_one(triton, node, served):
    rows, probabilities = rows_of(served["iris"])
    answer = triton.infer("subject.bare", given(triton.words, rows, "features"))
    numpy.testing.assert_allclose(answer.as_numpy("probabilities"), probabilities, atol=1e-5)
    with Gateway(node.url) as gateway:
        said = gateway.request({"features": rows.tolist()}, gateway="grade").payload
        assert said["labels"] == served["iris"]["label"]
        numpy.testing.assert_allclose(said["probabilities"], probabilities, atol=1e-5)
        with pytest.raises(Exception, match=r"FP32 \[any, 4\]"):
            gateway.request({"features": [[1.0, 2.0]]}, gateway="grade")
        with pytest.raises(Exception, match="not granted"):
            gateway.request({"features": rows.tolist(), "model": "wine"}, gateway="grade")


def test_what_does_not_fit_a_model_is_told_what_would(triton, served):
    for rows, name, says in [
        (ROWS, "features", r"expected FP32 \[any, 4\]"),
        (numpy.zeros([0, 4], dtype=numpy.float32), "features", "at least one row"),
        (numpy.zeros([1, 4], dtype=numpy.float32), "x", "no input"),
    ]:
        with pytest.raises(InferenceServerException, match=says):
            triton.infer("flowers", given(triton.words, rows, name))
    with pytest.raises(InferenceServerException, match="no tag `v9`"):
        triton.infer("flowers", given(triton.words, ROWS, "features"), model_version="v9")
    with pytest.raises(InferenceServerException, match="no model `flower`; did you mean `flowers`"):
        triton.infer("flower", given(triton.words, ROWS, "features"))


def test_a_tag_that_moves_is_followed_by_the_next_call(triton, node, served):
    rows, linear = rows_of(served["cancer-linear"])
    _, mlp = rows_of(served["cancer-mlp"])
    ask = lambda: triton.infer("cancer", given(triton.words, rows, "features")).as_numpy("probabilities")
    numpy.testing.assert_allclose(ask(), linear, atol=1e-5)
    before = json.loads(node.skep("model", "tag", "cancer:v2", "latest", "-o", "json").stdout)["replaced"]
    numpy.testing.assert_allclose(ask(), mlp, atol=1e-5)
    node.skep("model", "tag", f"cancer@{before}", "latest")
    numpy.testing.assert_allclose(ask(), linear, atol=1e-5)


def test_admin_looks_after_models(node):
    iris, wine = (Path(__file__).parents[2] / "samples" / "models" / f"{name}.onnx" for name in ("iris", "wine"))
    with Admin(node.url) as admin:
        first = admin.push_model(iris, name="looked-after")
        assert [port.name for port in first.version.outputs] == ["label", "probabilities"]
        second = admin.push_model(wine.read_bytes(), name="looked-after", tag="v2")
        assert second.version.digest != first.version.digest
        (model,) = admin.models("looked-after")
        assert {tag: v.digest for v in model.versions for tag in v.tags} == {
            "latest": first.version.digest,
            "v2": second.version.digest,
        }
        assert admin.tag_model("looked-after", "v2", "latest") == first.version.digest
        for wrong, says in [(b"not a model", "no ONNX model"), (b"", "empty")]:
            with pytest.raises(GatewayError, match=says):
                admin.push_model(wrong, name="looked-after")
        with pytest.raises(ValueError, match="name"):
            admin.push_model(b"x")
        assert set(admin.delete_model("looked-after")) == {first.version.digest, second.version.digest}
        with pytest.raises(ResourceNotFound):
            admin.delete_model("looked-after")
