"""A chat whose words leave one by one, as they are made."""

from skep import Swarm, register_bee

GREETINGS = {"hello", "hi", "hey"}


def words(prompt: str):
    """What a model would do: one word after the other."""
    asked = prompt.strip().rstrip("?!.").split()
    if not asked:
        yield from "You said nothing .".split()
    elif asked[0].lower() in GREETINGS:
        yield from "Hello ! What would you like to know of bees ?".split()
    else:
        yield from "You ask of".split()
        yield asked[-1]
        yield from ": ask the queen , she knows .".split()


@register_bee(name="chat")
def chat(swarm: Swarm, payload, context):
    said = 0
    for word in words(payload["prompt"]):
        swarm.part(word if not said or word in ".,:!?" else f" {word}")
        said += 1
    swarm.respond({"tokens": said})
