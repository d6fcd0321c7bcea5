"""Trains the sample models and writes them as ONNX, with what they answer and how well they do.

    python -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python train.py            # writes *.onnx, expected.json and accuracy.md beside this file
    venv/bin/python train.py --check    # trains again and compares with the files that are there; writes nothing

All data come with scikit-learn, but for the card payments, which are made up here. All seeds are fixed, and training uses one thread, so the
same processor gives the same bytes. Another one may round differently in the last place; then `--check` says so and compares accuracy,
which must not differ by more than one in a hundred.

Outputs are plain tensors: `label` and `probabilities` (no ZipMap), so any backend can run them.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from scipy.ndimage import zoom
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, precision_score, recall_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "fraud-model"))
from features import DAY_S, HOUR_S, USUAL, features, new_profile, updated

SEED = 7
# Both versions are old enough for every backend that skep has.
OPSET = {"": 15, "ai.onnx.ml": 1}


def parts(data, labels):
    """A quarter of the rows, of each class alike, is for the test."""
    return train_test_split(data.astype(np.float32), labels, test_size=0.25, random_state=SEED, stratify=labels)


def digits():
    """The 8 x 8 digits as 28 x 28, the size that most models of digits take; 0 to 1."""
    data = load_digits()
    images = np.clip(np.stack([zoom(image, 3.5, order=1) for image in data.images]) / 16.0, 0.0, 1.0)
    return parts(images.reshape(len(images), 784), data.target)


def converted(model, columns, name):
    """scikit-learn's model as ONNX. A scaler becomes a subtraction and a division, which are in ONNX itself."""
    return to_onnx(
        model,
        initial_types=[(name, FloatTensorType([None, columns]))],
        options={id(part): options for part, options in described(model)},
        target_opset=OPSET,
    )


def described(model):
    steps = [step for _, step in model.steps] if hasattr(model, "steps") else [model]
    for step in steps:
        if isinstance(step, StandardScaler):
            yield step, {"div": "div"}
        else:
            yield step, {"zipmap": False}


class Cnn:
    """Two convolutions of 3 x 3, each with ReLU and a pooling by 2, and a linear layer; trained here with Adam, in numpy."""

    def __init__(self, rng):
        def drawn(*shape):
            return (rng.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))).astype(np.float32)

        self.weights = [drawn(8, 1, 3, 3), np.zeros(8, np.float32), drawn(16, 8, 3, 3), np.zeros(16, np.float32)]
        self.weights += [drawn(10, 16 * 7 * 7), np.zeros(10, np.float32)]

    @staticmethod
    def columns(images):
        """Every 3 x 3 patch of images (rows, channels, height, width), zero outside, as one row of a matrix."""
        padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
        patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        rows, channels, height, width = images.shape
        return patches.transpose(0, 2, 3, 1, 4, 5).reshape(rows * height * width, channels * 9)

    def layer(self, images, weight, bias):
        rows, _, height, width = images.shape
        columns = self.columns(images)
        made = (columns @ weight.reshape(len(weight), -1).T + bias).reshape(rows, height, width, -1).transpose(0, 3, 1, 2)
        made = np.maximum(made, 0.0)
        blocks = made.reshape(rows, -1, height // 2, 2, width // 2, 2)
        pooled = blocks.max(axis=(3, 5))
        return columns, made, pooled

    @staticmethod
    def back(columns, made, pooled, gradient):
        """Of a layer: what its weights, bias and patches contributed."""
        rows, channels, height, width = made.shape
        chosen = made.reshape(rows, channels, height // 2, 2, width // 2, 2) == pooled[:, :, :, None, :, None]
        spread = (chosen * gradient[:, :, :, None, :, None]).reshape(made.shape) * (made > 0)
        flat = spread.transpose(0, 2, 3, 1).reshape(-1, channels)
        return flat.T @ columns, flat.sum(axis=0), flat

    def gradients(self, images, labels):
        w1, b1, w2, b2, w3, b3 = self.weights
        first = self.layer(images, w1, b1)
        second = self.layer(first[2], w2, b2)
        flat = second[2].reshape(len(images), -1)
        scores = flat @ w3.T + b3
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        wrong = scores / scores.sum(axis=1, keepdims=True)
        wrong[np.arange(len(labels)), labels] -= 1.0
        wrong /= len(labels)
        gradient_2 = (wrong @ w3).reshape(second[2].shape)
        d2, db2, spread = self.back(*second, gradient_2)
        # Each patch's share goes back to where the patch was taken.
        patches = (spread @ w2.reshape(16, -1)).reshape(len(images), 14, 14, 8, 3, 3)
        gradient_1 = np.zeros((len(images), 8, 16, 16), np.float32)
        for row in range(3):
            for column in range(3):
                gradient_1[:, :, row : row + 14, column : column + 14] += patches[..., row, column].transpose(0, 3, 1, 2)
        d1, db1, _ = self.back(*first, gradient_1[:, :, 1:15, 1:15])
        return [d1.reshape(w1.shape), db1, d2.reshape(w2.shape), db2, wrong.T @ flat, wrong.sum(axis=0)]

    def fit(self, images, labels, rng, epochs=12, rate=2e-3, size=32):
        first = [np.zeros_like(w) for w in self.weights]
        second = [np.zeros_like(w) for w in self.weights]
        step = 0
        for _ in range(epochs):
            order = rng.permutation(len(images))
            for at in range(0, len(order), size):
                chosen = order[at : at + size]
                step += 1
                for at_weight, gradient in enumerate(self.gradients(images[chosen], labels[chosen])):
                    first[at_weight] = 0.9 * first[at_weight] + 0.1 * gradient
                    second[at_weight] = 0.999 * second[at_weight] + 0.001 * gradient**2
                    up = first[at_weight] / (1 - 0.9**step)
                    down = np.sqrt(second[at_weight] / (1 - 0.999**step)) + 1e-8
                    self.weights[at_weight] = (self.weights[at_weight] - rate * up / down).astype(np.float32)

    def to_onnx(self):
        names = ["conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "dense.weight", "dense.bias"]
        convolution = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1]}
        pooling = {"kernel_shape": [2, 2], "strides": [2, 2]}
        nodes = [
            helper.make_node("Conv", ["image", names[0], names[1]], ["c1"], name="conv1", **convolution),
            helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
            helper.make_node("MaxPool", ["r1"], ["p1"], name="pool1", **pooling),
            helper.make_node("Conv", ["p1", names[2], names[3]], ["c2"], name="conv2", **convolution),
            helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
            helper.make_node("MaxPool", ["r2"], ["p2"], name="pool2", **pooling),
            helper.make_node("Flatten", ["p2"], ["f"], name="flatten", axis=1),
            helper.make_node("Gemm", ["f", names[4], names[5]], ["scores"], name="dense", transB=1),
            helper.make_node("Softmax", ["scores"], ["probabilities"], name="softmax", axis=1),
            helper.make_node("ArgMax", ["probabilities"], ["label"], name="label", axis=1, keepdims=0),
        ]
        graph = helper.make_graph(
            nodes,
            "digits-cnn",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [None, 1, 28, 28])],
            [
                helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
                helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 10]),
            ],
            [numpy_helper.from_array(weight, name) for name, weight in zip(names, self.weights)],
        )
        return helper.make_model(
            graph, producer_name="skep samples", opset_imports=[helper.make_opsetid("", OPSET[""])], ir_version=8
        )


def history(rng):
    """The payments of one made-up card, in order: amount, country, seconds, and 1 where it is a theft.

    A card has a usual amount, a home, waking hours, now and then a large purchase, and perhaps a journey. Four cards of ten are stolen once:
    some payments within minutes, mostly abroad and large, at times small ones first; a part of them looks like any other payment.
    """
    usual, home, waking = 30.0 * rng.lognormal(0.0, 0.6), rng.integers(5), 23 if rng.random() < 0.1 else 14
    count = int(rng.integers(25, 56))
    journey = (int(rng.integers(5, count)), int(rng.integers(3, 10))) if rng.random() < 0.15 else (count, 0)
    away = int(rng.integers(5, 20))
    theft = int(rng.integers(2, count)) if rng.random() < 0.4 else count
    day, found = float(rng.integers(19_000, 19_400)), []
    for at in range(count):
        day += rng.exponential(0.7)
        hour = rng.normal(waking, 4.0) % 24
        seconds = int(int(day) * DAY_S + hour * HOUR_S)
        large = 8.0 if rng.random() < 0.02 else 1.0
        abroad = journey[0] <= at < journey[0] + journey[1]
        found.append((usual * large * rng.lognormal(0.0, 0.6), away if abroad else int(home), seconds, 0))
        if at == theft:
            hidden, tried = rng.random() < 0.15, rng.random() < 0.4
            where = int(home) if hidden or rng.random() < 0.3 else int(rng.integers(5, 20))
            seconds = int(seconds + rng.exponential(6 * HOUR_S))
            for nth in range(int(rng.integers(1, 6))):
                times = 1.0 if hidden else 0.1 if tried and nth < 2 else 7.0
                found.append((usual * times * rng.lognormal(0.0, 0.6), where, seconds, 1))
                seconds += int(30 + rng.exponential(10 * 60))
    return sorted(found, key=lambda payment: payment[2])


def payments(cards, rng):
    """What the Bee of ../fraud-model would tell the model of all payments of so many cards, and which are thefts."""
    rows, thefts = [], []
    for _ in range(cards):
        profile = new_profile()
        for amount, country, at, theft in history(rng):
            rows.append(features(profile, amount, country, at))
            thefts.append(theft)
            profile = updated(profile, amount, country, at)
    return np.array(rows, np.float32), np.array(thefts)


def trained():
    """Name, what it is, the ONNX model, and the rows and labels of the test."""
    train, test, labels, truth = digits()
    mlp = MLPClassifier((256,), max_iter=25, random_state=SEED, early_stopping=False)
    mlp.n_iter_no_change = 100
    yield "digits-mlp", "digits, 784-256-10", converted(mlp.fit(train, labels), 784, "image"), test, truth

    rng = np.random.default_rng(SEED)
    cnn = Cnn(rng)
    cnn.fit(train.reshape(-1, 1, 28, 28), labels, rng)
    yield "digits-cnn", "digits, two convolutions", cnn.to_onnx(), test.reshape(-1, 1, 28, 28), truth

    train, test, labels, truth = parts(*load_iris(return_X_y=True))
    model = LogisticRegression(max_iter=1000).fit(train, labels)
    yield "iris", "iris, logistic regression", converted(model, 4, "features"), test, truth

    train, test, labels, truth = parts(*load_wine(return_X_y=True))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(train, labels)
    yield "wine", "wine, scaled, logistic regression", converted(model, 13, "features"), test, truth

    train, test, labels, truth = parts(*load_breast_cancer(return_X_y=True))
    for name, what, model in [
        ("cancer-linear", "logistic regression", LogisticRegression(max_iter=1000)),
        ("cancer-forest", "forest of 25 trees", RandomForestClassifier(25, max_depth=6, random_state=SEED)),
        ("cancer-mlp", "30-16-2", MLPClassifier((16,), max_iter=300, random_state=SEED)),
    ]:
        steps = [model] if "forest" in name else [StandardScaler(), model]
        model = make_pipeline(*steps).fit(train, labels)
        yield name, "breast cancer, " + what, converted(model, 30, "features"), test, truth

    # By cards, not by payments: no card of the test was seen in training.
    rng = np.random.default_rng(SEED)
    (train, labels), (test, truth) = payments(600, rng), payments(200, rng)
    model = GradientBoostingClassifier(n_estimators=60, max_depth=3, random_state=SEED).fit(train, labels)
    yield "fraud", "made-up card payments, 60 boosted trees", converted(model, len(USUAL), "features"), test, truth


def normal(model):
    """Outputs by one pair of names, and a first dimension that all share by name."""
    names = {"output_label": "label", "output_probability": "probabilities"}
    for node in model.graph.node:
        for at, name in enumerate(node.output):
            node.output[at] = names.get(name, name)
        for at, name in enumerate(node.input):
            node.input[at] = names.get(name, name)
    for output in model.graph.output:
        output.name = names.get(output.name, output.name)
    # The converter adds a domain once for each part that needs it, in no fixed order.
    versions = {opset.domain: opset.version for opset in model.opset_import}
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*pair) for pair in sorted(versions.items()))
    for port in [*model.graph.input, *model.graph.output]:
        port.type.tensor_type.shape.dim[0].dim_param = "rows"
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def main():
    check = "--check" in sys.argv[1:]
    lines = ["| model | what | bytes | rows of the test | right |", "| --- | --- | --- | --- | --- |"]
    expected, failed = {}, False
    for name, what, model, test, truth in trained():
        raw = normal(model)
        answer = lambda raw: onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
        feed = model.graph.input[0].name
        label, probabilities = answer(raw).run(["label", "probabilities"], {feed: test})
        right = accuracy_score(truth, label)
        lines.append(f"| `{name}` | {what} | {len(raw):,} | {len(truth)} | {100 * right:.1f} % |")
        if name == "fraud":
            # Nearly all payments are genuine, so how many answers are right says little.
            rare = f"Of the {len(truth):,} payments in the test of `fraud`, {sum(truth)} are thefts. By a score of 0.5 or more the model finds"
            rare += f" {100 * recall_score(truth, label):.0f} % of them; {100 * precision_score(truth, label):.0f} % of what it reports is one."
        # Three rows with what ONNX Runtime says, for the tests of every backend.
        expected[name] = {
            "input": feed,
            "shape": list(test[:3].shape),
            "data": [float(value) for value in test[:3].ravel()],
            "label": [int(value) for value in label[:3]],
            "probabilities": [float(value) for value in probabilities[:3].ravel()],
        }
        path = HERE / f"{name}.onnx"
        if not check:
            path.write_bytes(raw)
        elif path.read_bytes() == raw:
            print(f"{name}: the same bytes, {hashlib.sha256(raw).hexdigest()[:16]}")
        else:
            there = answer(path.read_bytes()).run(["label"], {feed: test})[0]
            there = accuracy_score(truth, there)
            failed |= abs(there - right) > 0.01
            print(f"{name}: other bytes; right {100 * right:.1f} %, of the file {100 * there:.1f} %")
    lines += ["", rare]
    print("\n".join(lines))
    if not check:
        (HERE / "accuracy.md").write_text("\n".join(lines) + "\n")
        (HERE / "expected.json").write_text(json.dumps(expected) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
