"""Is a message spam? Naive Bayes in plain Python.

The model is trained at the top level, from the file beside this one: that happens once, when the component is built, and every instance
starts with the finished model in its memory.
"""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from skep import Swarm, register_bee

WORD = re.compile(r"[a-z']+")


def words(text):
    return WORD.findall(text.lower())


def train(lines):
    counts, texts = {}, Counter()
    for line in lines:
        example = json.loads(line)
        texts[example["label"]] += 1
        counts.setdefault(example["label"], Counter()).update(words(example["text"]))
    vocabulary = {word for label in counts.values() for word in label}
    model = {}
    for label, found in counts.items():
        total = sum(found.values()) + len(vocabulary)
        unseen = math.log(1 / total)
        weights = {word: math.log((n + 1) / total) for word, n in found.items()}
        model[label] = (math.log(texts[label] / sum(texts.values())), weights, unseen)
    return model


MODEL = train(Path(__file__).with_name("examples.ndjson").read_text().splitlines())


@dataclass
class Text:
    text: str


def classify(text):
    scores = {
        label: prior + sum(weights.get(word, unseen) for word in words(text))
        for label, (prior, weights, unseen) in MODEL.items()
    }
    best = max(scores, key=scores.get)
    sure = 1 / sum(math.exp(score - scores[best]) for score in scores.values())
    return best, round(sure, 3)


@register_bee(name="classify")
def classify_message(swarm: Swarm, payload: Text, context):
    label, sure = classify(payload.text)
    swarm.respond({"label": label, "confidence": sure})
