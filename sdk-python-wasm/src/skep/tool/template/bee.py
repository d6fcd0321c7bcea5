"""The Bee `{{name}}`."""

import logging

from skep import Swarm, register_bee

log = logging.getLogger(__name__)


@register_bee(name="{{name}}")
def {{file}}(swarm: Swarm, payload, context):
    if "name" not in payload:
        swarm.reject("the payload has no `name`")
    log.info("greeting %s", payload["name"])
    swarm.respond({"message": f"Hello {payload['name']}"}, context=context)
