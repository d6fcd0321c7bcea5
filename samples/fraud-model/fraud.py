"""Scores card payments: a profile of each card in keyed state, and a model that is told how a payment differs from it."""

import math
from dataclasses import dataclass

from features import USUAL, features, new_profile, updated
from skep import Swarm, model, register_bee

fraud = model("fraud")


@dataclass
class Payment:
    card: str
    amount: float
    country: str
    at: int  # seconds since the Unix epoch, as the terminal says


def in_words(name, payment, profile):
    """What is special about a payment, by the number that says so."""
    return {
        "times": f"{payment.amount / profile['usual']:.1f} times the usual amount",
        "gap": "soon after the payment before",
        "recent": "many payments within an hour",
        "abroad": f"{payment.country}, where the card was never used",
        "night": "at night",
        "known": "a card of which little is known",
    }[name]


@register_bee(name="score")
def score(swarm: Swarm, payment: Payment):
    if not (math.isfinite(payment.amount) and 0 <= payment.amount <= 1e9):
        swarm.reject("`amount` is a number from 0 to 1,000,000,000")
    if not 0 <= payment.at < 2**40:
        swarm.reject("`at` is a time in seconds since the Unix epoch")
    if len(payment.country) != 2:
        swarm.reject("`country` is a code of two letters, as in ISO 3166")
    profile = swarm.state.get("profile") or new_profile()
    told = features(profile, payment.amount, payment.country, payment.at)
    # One call for it all: the payment, and the payment with one number at a time as usual.
    rows = [told] + [told[:at] + [usual] + told[at + 1 :] for at, usual in enumerate(USUAL.values())]
    scores = [of_fraud for _, of_fraud in fraud.predict({"features": rows})["probabilities"].tolist()]
    answer = {"card": payment.card, "score": round(scores[0], 3), "why": []}
    if scores[0] >= float(swarm.config.get("suspect", "0.5")):
        # Without which number would the score be much lower? That one counts most.
        drops = sorted(((scores[0] - other, name) for other, name in zip(scores[1:], USUAL)), reverse=True)
        answer["why"] = [in_words(name, payment, profile) for drop, name in drops[:2] if drop > 0.05]
    swarm.state["profile"] = updated(profile, payment.amount, payment.country, payment.at)
    swarm.respond(answer)
