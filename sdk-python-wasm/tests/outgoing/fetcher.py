"""What the tests of outgoing requests upload."""

from skep import Swarm, http, register_bee


@register_bee(name="fetch")
def fetch(swarm: Swarm, asked: dict, context):
    try:
        answer = http.request(asked["method"], asked["url"], headers=asked.get("headers"), body=asked.get("body", ""), timeout=asked.get("timeout"))
    except http.HttpError as e:
        swarm.respond({"error": e.code})
        return
    swarm.respond({"status": answer.status, "kind": answer.header("Content-Type"), "length": len(answer.body), "text": answer.text[:200]})
