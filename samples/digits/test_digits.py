"""The Bee in Python as a plain function and as a component, and the whole Swarm on a node. The Bee in Rust has its tests in src/lib.rs."""

import json
import shutil
from pathlib import Path

import pytest
from prepare import SHADES, enlarged, points, prepare

from skep import DevSwarm, Gateway, Reject
from skep.client import Rejected

HERE = Path(__file__).parent
WRONG = [
    {},
    [],
    {"picture": 3},
    {"picture": [0] * 63},
    {"picture": [17] + [0] * 63},
    {"picture": [True] + [0] * 63},
    {"picture": [[0] * 8] * 8},
    {"picture": ["@" * 9] + [""] * 7},
    {"picture": ["x"] + [""] * 7},
    b'{"picture": [1e999' + b", 0" * 63 + b"]}",
    b'{"picture": [NaN' + b", 0" * 63 + b"]}",
    b'{"picture": ',
    b"\xff",
]


def lines(name):
    return [json.loads(line) for line in (HERE / name).read_text().splitlines()]


def test_a_picture_of_text_is_one_of_numbers():
    assert points([" " * 7 + "@", "@"] + [""] * 6) == points([0] * 7 + [16, 16] + [0] * 55)
    assert points([SHADES[:8]] + [""] * 7)[:8] == [shade / 9 for shade in range(8)]


def test_it_is_enlarged_as_the_pictures_that_the_model_learned_from():
    # The first picture here is the first of the models' test rows, which scipy enlarged.
    known = json.loads((HERE.parent / "models" / "expected.json").read_text())["digits-mlp"]["data"][:784]
    large = enlarged([shade / 16 for shade in lines("digits.jsonl")[0]["picture"]])
    assert len(large) == 784 and large == pytest.approx(known, abs=1e-6)
    assert enlarged([0.5] * 64) == pytest.approx([0.5] * 784)


def test_what_is_no_picture_is_rejected(dev_swarm):
    assert {outcome.ended for outcome in dev_swarm.outcomes("prepare", WRONG)} == {"reject"}
    with pytest.raises(Reject, match="point 0 of the picture is not a number from 0 to 16"):
        prepare(DevSwarm(), WRONG[4])


def test_the_component_does_the_same(dev_swarm, skep_engine):
    given = lines("digits.jsonl") + WRONG
    assert skep_engine("prepare.py").outcomes("prepare", given) == dev_swarm.outcomes("prepare", given)


@pytest.mark.skipif(shutil.which("cargo") is None, reason="the Bee in Rust needs cargo")
def test_the_swarm_answers_as_expected(skep_node):
    skep_node.skep("model", "push", "../models/digits-mlp.onnx", "--name", "digits")
    skep_node.skep("up", ".", "--once", "--node", skep_node.url)
    with Gateway(skep_node.url) as gateway:
        for picture, answer in zip(lines("digits.jsonl"), lines("expected.jsonl"), strict=True):
            assert gateway.request("digits", picture).payload == answer
        for wrong in WRONG:
            with pytest.raises(Rejected, match="stage `prepare` failed"):
                gateway.request("digits", wrong)
