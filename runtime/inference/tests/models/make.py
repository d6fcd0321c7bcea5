"""Models of trees of every kind and of scalers, small, with what ONNX Runtime in Python answers: the tests hold tract's side against it.

    ../../../../samples/models/requirements.txt, then: python make.py
"""

import json
import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestRegressor,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

HERE = Path(__file__).parent
OPSET = {"": 15, "ai.onnx.ml": 1}
iris = load_iris(return_X_y=True)
cancer = load_breast_cancer(return_X_y=True)
diabetes = load_diabetes(return_X_y=True)
named = (iris[0], np.array(["setosa", "versicolor", "virginica"])[iris[1]])

models = {
    "many-classes": (ExtraTreesClassifier(5, max_depth=4, random_state=1), iris),
    "one-tree": (DecisionTreeClassifier(max_depth=4, random_state=1), cancer),
    "texts": (DecisionTreeClassifier(max_depth=3, random_state=1), named),
    "boosted-two": (GradientBoostingClassifier(n_estimators=5, max_depth=2, random_state=1), cancer),
    "boosted-three": (GradientBoostingClassifier(n_estimators=4, max_depth=2, random_state=1), iris),
    "regressor": (DecisionTreeRegressor(max_depth=4, random_state=1), diabetes),
    "regressors": (RandomForestRegressor(5, max_depth=4, random_state=1), diabetes),
    "scaled": (make_pipeline(StandardScaler(), DecisionTreeRegressor(max_depth=3, random_state=1)), diabetes),
    "scaled-only": (make_pipeline(StandardScaler(), MinMaxScaler()), diabetes),
    "boosted-regressor": (GradientBoostingRegressor(n_estimators=6, max_depth=2, random_state=1), diabetes),
}


def by_hand(name, modes, missing, post, operator="TreeEnsembleRegressor", **more):
    """One tree of three levels whose nodes compare in the ways that scikit-learn does not."""
    nodes = {
        "nodes_treeids": [0] * 7,
        "nodes_nodeids": list(range(7)),
        "nodes_featureids": [0, 1, 1, 0, 0, 0, 0],
        "nodes_values": [0.5, 1.0, -1.0, 0.0, 0.0, 0.0, 0.0],
        "nodes_modes": [*modes, "LEAF", "LEAF", "LEAF", "LEAF"],
        "nodes_truenodeids": [1, 3, 5, 0, 0, 0, 0],
        "nodes_falsenodeids": [2, 4, 6, 0, 0, 0, 0],
        "nodes_missing_value_tracks_true": [*missing, 0, 0, 0, 0],
        "post_transform": post,
        **more,
    }
    classes = operator.endswith("Classifier")
    node = helper.make_node(operator, ["x"], (["label"] if classes else []) + ["y"], domain="ai.onnx.ml", name="trees", **nodes)
    width = len(more["classlabels_int64s"]) if classes else 1
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, width])]
    if classes:
        outputs.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, [None]))
    graph = helper.make_graph([node], name, [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])], outputs)
    opsets = [helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def leaves(kind, weights, ids=None):
    return {
        f"{kind}_treeids": [0] * 4,
        f"{kind}_nodeids": [3, 4, 5, 6],
        f"{kind}_ids": ids or [0] * 4,
        f"{kind}_weights": weights,
    }


odd = np.array(
    [[0.5, 1.0], [0.5, -1.0], [0.4, 1.0], [0.6, 0.9], [np.nan, 1.0], [0.5, np.nan], [np.nan, np.nan], [9.0, -9.0]], np.float32
)
target = leaves("target", [1.0, -2.0, 3.0, 0.25])
made = {}
for number, (modes, missing, aggregate) in enumerate(
    [
        (["BRANCH_LT", "BRANCH_GTE", "BRANCH_GT"], [0, 1, 0], "SUM"),
        (["BRANCH_EQ", "BRANCH_NEQ", "BRANCH_LEQ"], [1, 0, 1], "AVERAGE"),
        (["BRANCH_GTE", "BRANCH_LEQ", "BRANCH_LT"], [0, 0, 1], "MAX"),
    ]
):
    made[f"modes-{number}"] = by_hand("modes", modes, missing, "NONE", n_targets=1, aggregate_function=aggregate, base_values=[0.5], **target)
three = {"classlabels_int64s": [4, 5, 6]}
two = {"classlabels_int64s": [8, 9]}
lt = (["BRANCH_LT", "BRANCH_GTE", "BRANCH_GT"], [0, 1, 0])
for post in ["NONE", "SOFTMAX", "LOGISTIC"]:
    weights = leaves("class", [1.0, -2.0, 3.0, 0.25], [0, 1, 2, 1])
    made[f"three-{post.lower()}"] = by_hand("three", *lt, post, "TreeEnsembleClassifier", base_values=[0.1, 0.2, 0.3], **weights, **three)
for post in ["NONE", "LOGISTIC"]:
    weights = leaves("class", [1.0, -2.0, 3.0, -0.25])
    made[f"two-{post.lower()}"] = by_hand("two", *lt, post, "TreeEnsembleClassifier", base_values=[0.1], **weights, **two)
    weights = leaves("class", [0.9, 0.2, 0.6, 0.5])
    made[f"positive-{post.lower()}"] = by_hand("positive", *lt, post, "TreeEnsembleClassifier", **weights, **two)

expected = {}
for name, (model, (data, labels)) in models.items():
    rows = data[:: max(1, len(data) // 12)].astype(np.float32)
    model.fit(data.astype(np.float32), labels)
    options = {"zipmap": False} if hasattr(model, "classes_") else None
    kind = FloatTensorType([None, data.shape[1]])
    made[name] = to_onnx(model, initial_types=[("x", kind)], options={id(model): options} if options else None, target_opset=OPSET)
    expected[name] = rows
total = 0
for name, model in made.items():
    rows = expected.get(name, odd)
    raw = model.SerializeToString(deterministic=True)
    (HERE / f"{name}.onnx").write_bytes(raw)
    total += len(raw)
    session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"x": rows})
    expected[name] = {
        "shape": list(rows.shape),
        # JSON has no NaN.
        "data": [None if np.isnan(value) else float(value) for value in rows.ravel()],
        "outputs": [
            {"shape": list(value.shape), "data": [str(v) for v in value.ravel()] if value.dtype.kind in "OU" else value.ravel().tolist()}
            for value in outputs
        ],
    }
(HERE / "expected.json").write_text(json.dumps(expected) + "\n")
print(len(made), "models,", total, "bytes")
