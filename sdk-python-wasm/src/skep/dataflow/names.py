"""What a node calls a flow and its stages: labels, as of DNS, made of step IDs."""

from __future__ import annotations

import re
from hashlib import sha256

from .plan import Plan

LABEL_MAX = 63
_OTHER = re.compile(r"[^a-z0-9]+")
#: The substep that keeps an operator's state: who wrote the flow knows the operator.
_INNER = ".stateful_batch"


def label(text: str) -> str:
    """Lower-case letters, digits and hyphens.

    >>> label("Orders by_day"), label("…")
    ('orders-by-day', 'flow')
    """
    found = _OTHER.sub("-", text.lower()).strip("-") or "flow"
    return found if len(found) <= LABEL_MAX else f"{found[: LABEL_MAX - 9].rstrip('-')}-{_digest(text)}"


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def stage_names(plan: Plan) -> dict[str, str]:
    """The label of each stage by its step's ID. The same as long as no other stage would have it too; then both have a digest behind it."""
    plain = {}
    for stage in plan.stages:
        _, _, inside = stage.name.partition(".")
        plain[stage.name] = label(inside.removesuffix(_INNER))
    taken = list(plain.values())
    return {
        name: found if taken.count(found) == 1 else f"{found[: LABEL_MAX - 9].rstrip('-')}-{_digest(name)}" for name, found in plain.items()
    }
