"""Says which language a text is in, or that it cannot tell."""

from dataclasses import dataclass

from ngrams import LANGUAGES, NONE, row, words
from skep import BeeError, Swarm, model, register_bee

languages = model("languages")
CODES = list(LANGUAGES)


@dataclass
class Text:
    text: str


class WrongSetting(BeeError):
    """The manifest's configuration, or the model that it grants, is not what this Bee works with."""


def bound(swarm):
    """How sure the model must be, from 0 to 1."""
    said = swarm.config.get("sure", "0.6")
    try:
        sure = float(said)
    except ValueError:
        sure = -1.0
    if not 0.0 <= sure <= 1.0:
        raise WrongSetting(f'config `sure` is {said!r}: write a number from 0 to 1, as in "0.6"')
    return sure


def guess(at, probabilities):
    return {"language": CODES[at], "name": LANGUAGES[CODES[at]], "sure": round(probabilities[at], 2)}


def unknown(why, *guesses):
    return {"language": None, "why": why, "guesses": list(guesses)}


def answer(text, sure):
    found, foreign = words(text)
    if not found and not foreign:
        return unknown("no words")
    # A name in Latin letters must not stand for a page in Tibetan ones.
    if foreign > sum(map(len, found)):
        return unknown("a script that the model does not know")
    probabilities = languages.predict({"features": row(found)})["probabilities"].flat()
    if len(probabilities) != NONE + 1:
        raise WrongSetting(f"the model tells {len(probabilities)} classes apart, and {NONE + 1} are expected: push the one that is beside this Bee")
    first, second = sorted(range(NONE), key=lambda at: -probabilities[at])[:2]
    if probabilities[NONE] >= max(sure, probabilities[first]):
        return unknown("no language that the model knows, or several")
    if probabilities[first] < sure:
        return unknown("unsure", guess(first, probabilities), guess(second, probabilities))
    return guess(first, probabilities)


@register_bee(name="identify")
def identify(swarm: Swarm, payload: Text):
    swarm.respond(answer(payload.text, bound(swarm)))
