"""Trains model.json: `python train.py`. Logistic regression by gradient descent, on made-up readings of machines of which some have a worn bearing.

Three features, as `watch` in src/lib.rs makes them of a reading and of what the sensor showed before: how many standard deviations vibration and
temperature are above their usual, and their product (a worn bearing shakes and is hot; a heavy load only shakes, a warm day is only warm).
"""

import json
import math
import random

chance = random.Random(7)


def reading(worn: bool) -> list[float]:
    load, day = max(0.0, chance.gauss(0, 1)), max(0.0, chance.gauss(0, 1))
    wear = chance.uniform(1.5, 5) if worn else 0.0
    shakes, hot = load + wear + chance.gauss(0, 0.5), day + wear * 0.8 + chance.gauss(0, 0.5)
    return [shakes, hot, max(0.0, shakes) * max(0.0, hot)]


rows = [(reading(worn), float(worn)) for worn in [False] * 3000 + [True] * 1000]
weights, bias = [0.0, 0.0, 0.0], 0.0
for _ in range(3000):
    steps, step = [0.0, 0.0, 0.0], 0.0
    for features, worn in rows:
        score = 1 / (1 + math.exp(-(bias + sum(w * f for w, f in zip(weights, features)))))
        step += score - worn
        steps = [s + (score - worn) * f for s, f in zip(steps, features)]
    weights = [w - 0.1 * s / len(rows) for w, s in zip(weights, steps)]
    bias -= 0.1 * step / len(rows)
right = sum((bias + sum(w * f for w, f in zip(weights, features)) > 0) == (worn == 1) for features, worn in rows)
print(f"{100 * right / len(rows):.1f} % of {len(rows)} right")
with open("model.json", "w") as out:
    json.dump({"weights": [round(w, 4) for w in weights], "bias": round(bias, 4)}, out)
    out.write("\n")
