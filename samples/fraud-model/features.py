"""What the model of payments is told: how a payment differs from what its card did before.

The Bee and ../models/train.py both call this, so the model meets in service what it met in training.
"""

import math

HOUR_S, DAY_S = 3_600, 86_400
#: The usual amount of a card of which nothing is known yet.
TYPICAL = 30.0
#: Of the usual amount: the last ten payments or so count.
MEMORY = 0.1
#: One payment counts for the usual amount as at most so many times that, so that a theft does not become the habit.
COUNTED_MAX = 3.0
#: What a profile holds at most of each list.
RECENT_MAX, COUNTRIES_MAX = 50, 50
#: A card is well known after so many payments.
KNOWN = 20

#: Each number that the model takes, and what it is of a payment with nothing special about it.
USUAL = {
    "times": 0.0,  # how many times the usual amount: the logarithm
    "gap": math.log1p(DAY_S),  # seconds since the payment before: the logarithm of one more
    "recent": 0.0,  # payments within the hour before
    "abroad": 0.0,  # 1: the card was never used in that country
    "night": 0.0,  # 1: before six o'clock, UTC
    "known": float(KNOWN),  # payments before, at most 20
}


def new_profile():
    return {"payments": 0, "usual": TYPICAL, "last": None, "recent": [], "countries": []}


def features(profile, amount, country, at):
    """A payment as numbers, in the order of `USUAL`. `at` is in seconds since the Unix epoch; one that comes late counts as at once."""
    gap = DAY_S if profile["last"] is None else max(at - profile["last"], 0)
    return [
        math.log(max(amount, 0.01) / profile["usual"]),
        math.log1p(gap),
        float(sum(at - HOUR_S < before <= at for before in profile["recent"])),
        float(bool(profile["countries"]) and country not in profile["countries"]),
        float(at % DAY_S < 6 * HOUR_S),
        float(min(profile["payments"], KNOWN)),
    ]


def updated(profile, amount, country, at):
    """The profile after that payment."""
    usual = profile["usual"]
    last = at if profile["last"] is None else max(at, profile["last"])
    recent = [before for before in [*profile["recent"], at] if before > last - HOUR_S]
    countries = [one for one in profile["countries"] if one != country]
    return {
        "payments": profile["payments"] + 1,
        "usual": max(usual + MEMORY * (min(amount, COUNTED_MAX * usual) - usual), 1.0),
        "last": last,
        "recent": recent[-RECENT_MAX:],
        "countries": [*countries, country][-COUNTRIES_MAX:],
    }
