"""Models as a Bee calls them: values become tensors, and what does not fit is told and rejected."""

from __future__ import annotations

import json
import math
from array import array
from pathlib import Path

import pytest

from skep import BadInput, BeeError, DevSwarm, Message, Model, ModelBusy, ModelError, Reject, Tensor, host, model, models, register_bee
from skep.models import _TYPES, Port, Signature

SAMPLES = Path(__file__).parents[2] / "samples" / "models"


class Recorder:
    """A model that answers what it is given, and says what it takes."""

    def __init__(self, *ports: Port) -> None:
        self.signature = Signature(ports, ports)
        self.asked = 0

    def __call__(self, inputs):
        self.asked += 1
        return inputs


def image(shape=(None, 4), dtype="FP32"):
    return Recorder(Port("image", dtype, shape))


@pytest.mark.parametrize(
    ("value", "dtype", "shape", "elements"),
    [
        ([1.5, 2], "FP32", (2,), [1.5, 2.0]),
        ([[1, 2], [3, 4]], "INT64", (2, 2), [[1, 2], [3, 4]]),
        (([True], [False]), "BOOL", (2, 1), [[True], [False]]),
        (["a", "ü", ""], "BYTES", (3,), ["a", "ü", ""]),
        ([b"\xff"], "BYTES", (1,), [b"\xff"]),
        (7, "INT64", (), 7),
        (0.5, "FP32", (), 0.5),
        ([], "FP32", (0,), []),
        ([[], []], "FP32", (2, 0), [[], []]),
        (array("d", [1.0]), "FP64", (1,), [1.0]),
        (array("q", [-1]), "INT64", (1,), [-1]),
        (array("H", [65535]), "UINT16", (1,), [65535]),
        (b"\x01\x02", "UINT8", (2,), [1, 2]),
        (memoryview(bytes(8)).cast("f", (1, 2)), "FP32", (1, 2), [[0.0, 0.0]]),
    ],
)
def test_a_value_has_a_type_and_a_shape(value, dtype, shape, elements):
    tensor = Tensor(value)
    assert (tensor.dtype, tensor.shape, tensor.tolist()) == (dtype, shape, elements)
    assert Tensor(tensor) == tensor


@pytest.mark.parametrize("dtype", [name for name in _TYPES if name not in ("BYTES", "BOOL")])
def test_elements_of_every_type_go_both_ways(dtype):
    tensor = Tensor([[0, 1, 2], [3, 64, 100]], dtype=dtype)
    assert tensor.tolist() == [[0, 1, 2], [3, 64, 100]] and tensor.shape == (2, 3)
    assert len(tensor.data) == 6 and len(tensor) == 2
    again = Tensor(bytes(tensor.data), (2, 3), dtype)
    assert again == tensor and again != Tensor([[0, 1, 2], [3, 64, 101]], dtype=dtype)


def test_numbers_keep_what_their_type_can_keep():
    nan, inf = Tensor([math.nan, math.inf]).tolist()
    assert math.isnan(nan) and inf == math.inf
    assert Tensor([3.14159], dtype="BF16").item() == 3.140625
    assert math.isnan(Tensor([math.nan], dtype="BF16").item())
    assert Tensor([[2**63 - 1]]).tolist() == [[2**63 - 1]]
    with pytest.raises(ValueError, match="2 elements, not one"):
        Tensor([1, 2]).item()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Tensor([[1, 2], [3]]), "lists of 1 and 2 elements"),
        (lambda: Tensor([[1], 2]), "elements and lists beside each other"),
        (lambda: Tensor([1, [2]]), "elements of the type list"),
        (lambda: Tensor([1, [2]], dtype="FP32"), "elements and lists beside each other"),
        (lambda: Tensor([None]), "type NoneType"),
        (lambda: Tensor("text"), "list of texts"),
        (lambda: Tensor({"a": 1}), "dict is no tensor"),
        (lambda: Tensor([1, "a"]), "numbers and texts beside each other"),
        (lambda: Tensor([2**63]), "element 0, 9223372036854775808, is no INT64"),
        (lambda: Tensor([0.0, 1e39]), r"element 1, 1e\+39, is no FP32"),
        (lambda: Tensor([256], dtype="UINT8"), "element 0, 256, is no UINT8"),
        (lambda: Tensor([1.5], dtype="INT64"), "element 0, 1.5, is no INT64"),
        (lambda: Tensor([2], dtype="BOOL"), "element 0, 2, is no BOOL"),
        (lambda: Tensor([1], dtype="BYTES"), "element 0, 1, is no BYTES"),
        (lambda: Tensor([1], dtype="float"), "unknown tensor type 'float'"),
        (lambda: Tensor(bytes(7), (1,), "FP32"), "7 bytes are no whole number of FP32"),
        (lambda: Tensor(bytes(8), (3,), "FP32"), "has 12 bytes, but 8 were given"),
        (lambda: Tensor([1, 2], shape=(3,)), "has 24 bytes, but 16 were given"),
        (lambda: Tensor(array("d", [1]), dtype="FP32"), "is FP64 and was said to be FP32"),
        (lambda: Tensor(["x" * 100_000], dtype="FP32"), "element 0, 'x+…, is no FP32"),
    ],
)
def test_what_is_no_tensor_is_told(make, says):
    with pytest.raises(BadInput, match=says) as told:
        make()
    assert len(str(told.value)) < 300
    deep = [1]
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(BadInput, match="64 deep"):
        Tensor(deep)


def test_a_list_becomes_what_the_model_takes():
    half, whole = image(dtype="FP16"), image((None,), "INT32")
    DevSwarm(models={"half": half, "whole": whole})
    for value in ([[1, 2, 3, 4]], ((1, 2, 3, 4),), Tensor([[1, 2, 3, 4]], dtype="FP16")):
        answer = model("half").predict(value)
        assert answer["image"].dtype == "FP16" and answer["image"].tolist() == [[1, 2, 3, 4]]
    assert model("half").predict({"image": [[1, 2, 3, 4]]})["image"].shape == (1, 4)
    assert model("whole").predict([5])["image"].dtype == "INT32"
    with pytest.raises(BadInput, match=r"input 'image' \(INT32 \[any\]\): element 0, 1.5, is no INT32"):
        model("whole").predict([1.5])


def test_elements_in_a_row_become_the_model_s_rows():
    DevSwarm(models={"m": image()})
    values = array("f", range(8))
    for given in (values, values.tobytes(), bytearray(values.tobytes())):
        assert model("m").predict(given)["image"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    # What does not come out even is the model's to refuse, with its shape.
    assert model("m").predict(array("f", range(3)))["image"].shape == (3,)
    with pytest.raises(BadInput, match="7 bytes"):
        model("m").predict(bytes(7))


def test_several_inputs_are_named():
    both = Recorder(Port("a", "FP32", (None,)), Port("b", "INT64", (None,)))
    DevSwarm(models={"both": both})
    answer = model("both").predict({"b": [1], "a": [1]})
    assert (answer["a"].dtype, answer["b"].dtype) == ("FP32", "INT64")
    with pytest.raises(BadInput, match="the inputs a, b"):
        model("both").predict([1])
    with pytest.raises(KeyError, match="no output `c`: it has b, a"):
        answer["c"]
    with pytest.raises(BadInput, match="name is text"):
        model("both").predict({1: [1]})


def test_a_newer_version_is_met_by_the_next_call():
    first, second = image(), image(dtype="FP64")
    swarm = DevSwarm(models={"m": first})
    found = model("m")
    assert found.predict([[1, 2, 3, 4]])["image"].dtype == "FP32"

    def strict(inputs):
        if inputs["image"].dtype != "FP64":
            raise BadInput("input 'image' is FP32 [1, 4]: expected FP64 [any, 4]")
        return second(inputs)

    strict.signature = second.signature
    swarm._memory._models["m"] = strict
    assert found.predict([[1, 2, 3, 4]])["image"].dtype == "FP64"
    # What fits neither is asked once.
    asked = second.asked
    with pytest.raises(BadInput):
        found.predict(Tensor([1.0]))
    assert second.asked == asked


def test_too_much_at_once_is_told():
    DevSwarm(models={"m": lambda inputs: inputs})
    with pytest.raises(BadInput, match="5000000 bytes at once, and one call hands over 4128768"):
        model("m").predict(Tensor(bytes(5_000_000)))


def test_trouble_ends_the_message_as_its_kind_says():
    def trouble(kind):
        def fail(inputs):
            raise models.model_error(kind, "why")

        return fail

    @register_bee(name="asks")
    def asks(swarm, payload, context):
        model(payload).predict([1])

    kinds = ("busy", "timeout", "unavailable", "invalid", "failed", "not-found", "no-step")
    swarm = DevSwarm(models={kind: trouble(kind) for kind in kinds})
    ended = {kind: outcome for kind, outcome in zip((*kinds, "unheard"), swarm.outcomes("asks", [*kinds, "unheard"]))}
    assert [ended[kind].ended for kind in kinds] == ["fail", "fail", "fail", "reject", "fail", "fail", "fail"]
    assert {ended[kind].about for kind in kinds[:3]} == {"ModelBusy"} and ended["failed"].about == "ModelError"
    assert "add it to the Bee's `models: [...]`" in ended["unheard"].detail
    assert issubclass(ModelBusy, ModelError) and issubclass(ModelError, BeeError) and issubclass(BadInput, Reject)


def test_a_model_belongs_to_a_message():
    host.use(None)
    found = model("digits")
    assert isinstance(found, Model) and repr(found) == "Model('digits')"
    with pytest.raises(ModelError, match="while a message is handled"):
        found.predict([1])
    with pytest.raises(TypeError, match="name is text"):
        model(b"digits")  # type: ignore[arg-type]


def test_the_dev_swarm_that_runs_has_the_models():
    one = DevSwarm(models={"m": lambda inputs: {"y": [1]}})

    @register_bee(name="asks")
    def asks(swarm, payload, context):
        swarm.respond(model("m").predict({"x": [0]})["y"].item())

    DevSwarm(models={"m": lambda inputs: {"y": [2]}})
    one.deliver("asks", Message({}))
    assert one.responded == [1]
    with pytest.raises(TypeError, match="a function or the path"):
        DevSwarm(models={"m": 3})
        model("m").predict([1])
    with pytest.raises(TypeError, match="answers a dict"):
        DevSwarm(models={"m": lambda inputs: [1]})
        model("m").predict([1])


def test_a_file_wants_onnxruntime(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    DevSwarm(models={"iris": SAMPLES / "iris.onnx"})
    with pytest.raises(ModelBusy, match="pip install onnxruntime"):
        model("iris").predict([[1, 2, 3, 4]])


def test_a_file_answers_as_on_a_node():
    pytest.importorskip("onnxruntime")
    numpy = pytest.importorskip("numpy")
    expected = json.loads((SAMPLES / "expected.json").read_text())["iris"]
    DevSwarm(models={"iris": str(SAMPLES / "iris.onnx"), "none": "none.onnx", "broken": __file__})
    values = expected["data"]
    rows = [values[at : at + 4] for at in range(0, len(values), 4)]
    for given in (rows, numpy.array(rows, dtype="f4"), array("f", values), {"features": rows}):
        answer = model("iris").predict(given)
        assert answer["label"].tolist() == expected["label"] and answer["label"].dtype == "INT64"
        assert numpy.allclose(numpy.asarray(answer["probabilities"]), numpy.reshape(expected["probabilities"], (3, -1)), atol=1e-5)
    for wrong, says in (
        ([[1, 2, 3]], r"input 'features' is FP32 \[1, 3\]: expected FP32 \[any, 4\]"),
        (numpy.zeros((1, 4)), r"is FP64 \[1, 4\]: expected FP32"),
        (numpy.zeros((0, 4), dtype="f4"), "zero"),
        ({"x": [1]}, "the inputs are features"),
        ({}, "'features' is missing"),
    ):
        with pytest.raises(BadInput, match=says):
            model("iris").predict(wrong)
    with pytest.raises(ModelError, match="no file none.onnx"):
        model("none").predict([1])
    with pytest.raises(ModelError, match="cannot be loaded"):
        model("broken").predict([1])


def test_numpy_reads_tensors_without_a_copy():
    numpy = pytest.importorskip("numpy")
    for dtype in _TYPES:
        if dtype in ("BYTES", "BF16"):
            continue
        tensor = Tensor([[0, 1], [1, 0]], dtype=dtype)
        read = numpy.asarray(tensor)
        assert read.shape == (2, 2) and read.tolist() == tensor.tolist() and Tensor(read) == tensor
    assert Tensor(numpy.arange(6, dtype="i4").reshape(2, 3).T).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert Tensor(numpy.float32(2.5)).item() == 2.5
    with pytest.raises(BadInput, match="format"):
        Tensor(numpy.array([1], dtype=">f4"))
