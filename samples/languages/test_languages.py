"""What the model is told, the Bee as a function and as a component, how often it is right, and the Swarm on a node with either backend."""

import http.client
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from languages import identify
from ngrams import BUCKETS, LANGUAGES, LOOKED_AT, NONE, features, pieces, row, words

from skep import DevSwarm, Gateway
from skep.client import Rejected

HERE = Path(__file__).parent
MODEL = HERE / "languages.onnx"
WRONG = [b"", b"\xff", b'{"text": "\xff"}', b'{"text": "', b'"text"', {}, [], {"text": None}, {"text": 3}, {"text": ["a"]}]
ENGLISH = "The bees return to the hive before it rains. "
#: As many bytes as a payload may have, of what takes longest: one character that becomes eighteen, marks without a letter, a word without end.
LONG = [ENGLISH * 5_800, "\ufdfa" * 80_000, "a\u0301" * 80_000, "x" * 260_000, "\U0001f41d" * 60_000, " " * 200_000 + ENGLISH]
STRANGE = [f"\0{ENGLISH}\0", f"\ud800{ENGLISH}", f"\u202e{ENGLISH}\ufeff"]


def lines(name):
    return [json.loads(line) for line in (HERE / name).read_text().splitlines()]


def onnxruntime_library():
    """libonnxruntime.so.*, as tests of the platform name it or as the Python package carries it."""
    if named := os.environ.get("ORT_DYLIB_PATH"):
        return named
    package = importlib.util.find_spec("onnxruntime")
    found = sorted(Path(package.origin).parent.glob("capi/libonnxruntime.so.*")) if package and package.origin else []
    return str(found[0]) if found else None


def saying(**said):
    """Instead of the model: probabilities by code, `none` for the class after them."""

    def predict(inputs):
        told = [0.0] * (NONE + 1)
        for code, probability in said.items():
            told[NONE if code == "none" else list(LANGUAGES).index(code)] = probability
        return {"probabilities": [told]}

    return predict


def answered(text, models, **config):
    swarm = DevSwarm(models=models, config=config)
    swarm.deliver(identify, {"text": text})
    return swarm.responded[0]


@pytest.mark.parametrize(
    "text, found, foreign",
    [
        ("", [], 0),
        (" \0\t12:30, +49 €🐝", [], 0),
        ("Hello, WORLD! It's 3pm", ["hello", "world", "it", "s", "pm"], 0),
        ("see https://example.org/x or a@example.org now", ["see", "or", "now"], 0),
        ("ＡＢＣ ﬁne cafe\u0301", ["abc", "fine", "café"], 0),
        ("नमस्ते मुझे", ["नमस्ते", "मुझे"], 0),
        ("п’ять пʼять", ["п", "ять", "п", "ять"], 0),
        ("བོད་སྐད་ Tibet", ["tibet"], 6),
        ("人々 ラーメン", ["人々", "ラーメン"], 0),
        ("\ud800 a\ud800b", ["a", "b"], 0),
    ],
)
def test_words_are_letters_of_known_scripts(text, found, foreign):
    assert words(text) == (found, foreign)


def test_pieces_know_where_a_word_begins_and_ends():
    assert pieces(["no"]) == {" ": 2, "n": 1, "o": 1, " n": 1, "no": 1, "o ": 1, " no": 1, "no ": 1, " no ": 1}
    assert pieces(["after"])[" after "] == 1 and pieces(["after"])["fter"] == 1


def test_features_have_length_one_and_are_the_row():
    for text in [heard["text"] for heard in lines("heldout.jsonl")] + LONG:
        found = words(text)[0]
        told = features(found)
        assert all(0 <= bucket < BUCKETS and value > 0.0 for bucket, value in told.items())
        assert math.fsum(value * value for value in told.values()) == pytest.approx(1.0 if found else 0.0)
        given = row(found)
        assert len(given) == BUCKETS and {at for at, value in enumerate(given) if value} == set(told)
    # The model learned these places: another checksum or another order would make it guess.
    third, sixth = (1 / 3) ** 0.5, (1 / 6) ** 0.5
    assert features(["a"]) == pytest.approx({3_909: third, 7_747: sixth, 1_939: sixth, 2_257: sixth, 1_500: sixth})


def test_the_model_knows_these_languages_in_this_order():
    assert " ".join([*LANGUAGES, "-"]).encode() in MODEL.read_bytes()


def test_what_is_said_depends_on_how_sure_the_model_is():
    german = {"language": "de", "name": "German", "sure": 0.75}
    dutch = {"language": "nl", "name": "Dutch", "sure": 0.25}
    models = {"languages": saying(de=0.75, nl=0.25)}
    assert answered("x", models) == german
    assert answered("x", models, sure="0.75") == german
    assert answered("x", models, sure="0.8") == {"language": None, "why": "unsure", "guesses": [german, dutch]}
    none = {"language": None, "why": "no language that the model knows, or several", "guesses": []}
    assert answered("x", {"languages": saying(none=0.6, de=0.4)}) == none
    # Where all are below the bound, it is the two likeliest languages.
    assert answered("x", {"languages": saying(none=0.4, de=0.3, nl=0.3)})["why"] == "unsure"
    assert answered("x", {"languages": saying(none=0.4, de=0.6)}, sure="0")["language"] == "de"


def test_without_words_the_model_is_not_asked():
    for text in ["", "12:45", "\0", "\U0001f41d" * 9, "a@example.org"]:
        assert answered(text, {}) == {"language": None, "why": "no words", "guesses": []}
    assert answered("བོད་སྐད་ནི་ Tibet", {})["why"] == "a script that the model does not know"


def test_what_is_no_text_is_rejected():
    outcomes = DevSwarm().outcomes("identify", WRONG)
    assert {outcome.ended for outcome in outcomes} == {"reject"}
    assert "`text` is a number, not str" in outcomes[WRONG.index({"text": 3})].about


def test_a_wrong_setting_fails_and_says_what_is_right():
    for wrong in ["half", "NaN", "-0.1", "50", ""]:
        (outcome,) = DevSwarm(config={"sure": wrong}).outcomes("identify", [{"text": "x"}])
        assert (outcome.ended, outcome.about) == ("fail", "WrongSetting") and "a number from 0 to 1" in outcome.detail
    (outcome,) = DevSwarm(models={"languages": lambda inputs: {"probabilities": [[0.5, 0.5]]}}).outcomes("identify", [{"text": "x"}])
    assert (outcome.ended, outcome.about) == ("fail", "WrongSetting") and "2 classes" in outcome.detail
    (outcome,) = DevSwarm().outcomes("identify", [{"text": "x"}])
    assert (outcome.ended, outcome.about) == ("fail", "ModelError")


def test_onnxruntime_gives_what_is_expected():
    pytest.importorskip("onnxruntime")
    swarm = DevSwarm(models={"languages": MODEL})
    assert swarm.outcomes("identify", lines("texts.jsonl")) and swarm.responded == lines("expected.jsonl")


def said(outcomes):
    return [json.loads(answer) for outcome in outcomes for answer in outcome.respond]


def test_the_component_gives_what_is_expected(dev_swarm, skep_engine):
    engine = skep_engine("languages.py")
    outcomes = engine.outcomes("identify", lines("texts.jsonl"), models={"languages": MODEL})
    assert said(outcomes) == lines("expected.jsonl")
    assert engine.outcomes("identify", WRONG) == dev_swarm.outcomes("identify", WRONG)
    given = [json.dumps({"text": text}, ensure_ascii="\ud800" in text).encode() for text in LONG + STRANGE]
    assert max(map(len, given)) > 255_000
    found = said(engine.outcomes("identify", given, models={"languages": MODEL}))
    english = [0, 5, 6, 7, 8]
    assert len(found) == len(given) and [at for at, one in enumerate(found) if one["language"] == "en"] == english
    assert found[4]["why"] == "no words"
    # Only the beginning counts.
    first = (ENGLISH * 99)[:LOOKED_AT]
    (all_of_it,) = said(engine.outcomes("identify", [{"text": first + "и" * 9_999}], models={"languages": MODEL}))
    assert all_of_it == found[0]


def test_it_is_right_as_often_as_accuracy_md_says(skep_engine):
    apart = lines("heldout.jsonl")
    found = said(skep_engine("languages.py").outcomes("identify", [{"text": one["text"]} for one in apart], models={"languages": MODEL}))
    table = (HERE / "accuracy.md").read_text().split("spaCy's sentences (`heldout.jsonl`)")[1]
    (count, share_said, share_right) = re.search(r"\*\*20 or more\*\* \| ([\d,]+) \| \S+ % \| (\S+) % \| (\S+) %", table).groups()
    long = [(one["language"], answer["language"]) for one, answer in zip(apart, found, strict=True) if len(one["text"]) >= 20]
    told = [(truth, code) for truth, code in long if code is not None]
    right = sum(truth == code for truth, code in told)
    assert len(long) == int(count.replace(",", ""))
    assert f"{100 * len(told) / len(long):.1f}" == share_said and f"{100 * right / len(told):.1f}" == share_right


@pytest.fixture(params=["tract", "onnxruntime"])
def backend(request, monkeypatch):
    """What runs models on the node that the test starts."""
    monkeypatch.setenv("SKEP_INFERENCE", request.param)
    if request.param == "onnxruntime":
        library = onnxruntime_library()
        if library is None:
            pytest.skip("no library of ONNX Runtime: name it in ORT_DYLIB_PATH, or `pip install onnxruntime`")
        monkeypatch.setenv("SKEP_ONNXRUNTIME", library)


def test_the_swarm_answers_as_expected(backend, skep_node):
    skep_node.skep("up", ".", "--once", "--node", skep_node.url)
    with Gateway(skep_node.url) as gateway:
        for text, answer in zip(lines("texts.jsonl"), lines("expected.jsonl"), strict=True):
            assert gateway.request("languages", text).payload == answer
        for wrong in WRONG:
            with pytest.raises(Rejected, match="stage `identify` failed"):
                gateway.request("languages", wrong)
        # A megabyte is more than a message may have; afterwards all is as before.
        with pytest.raises(ValueError, match="at most 262144 bytes"):
            gateway.request("languages", {"text": ENGLISH * 23_000})
        # The node says so as soon as it is announced, and without waiting for it.
        plain = http.client.HTTPConnection(skep_node.url.removeprefix("http://"), timeout=30)
        plain.putrequest("POST", "/v1/languages")
        plain.putheader("content-length", "1000000")
        plain.endheaders()
        refused = plain.getresponse()
        assert refused.status == 413 and b"262144" in refused.read()
        plain.close()
        # Many at once: the node may run their calls of the model together.
        many = gateway.requests("languages", lines("texts.jsonl") * 8)
        assert [one.payload for one in many] == lines("expected.jsonl") * 8


def test_training_again_gives_the_same_model():
    """Takes some minutes, and the packages of `requirements-training.txt` in just these versions."""
    for requirements in [HERE / "requirements-training.txt", HERE.parent / "models" / "requirements.txt"]:
        for name, version in re.findall(r"^([\w-]+)==(\S+)$", requirements.read_text(), re.M):
            try:
                there = metadata.version(name)
            except metadata.PackageNotFoundError:
                there = None
            if there != version:
                pytest.skip(f"{name} {version} is not installed: see train.py")
    ran = subprocess.run([sys.executable, HERE / "train.py", "--check"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (HERE / "accuracy.md").read_text() in ran.stdout or "other bytes" in ran.stdout
