"""Two Bees in a row: `hello` publishes a greeting, `goodbye` answers the caller with it."""

from skep import Swarm, register_bee


@register_bee(name="hello")
def hello(swarm: Swarm, payload, context):
    if "name" not in payload:
        swarm.reject("the payload has no `name`")
    print(f"greeting {payload['name']}")
    swarm.publish({"greeting": f"Hello {payload['name']}"}, context=context)


@register_bee(name="goodbye")
def goodbye(swarm: Swarm, payload, context):
    swarm.respond({"message": f"{payload['greeting']}, and goodbye!"}, context=context)
