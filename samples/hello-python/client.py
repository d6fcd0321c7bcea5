"""Calls the Swarm: `python3 client.py Bee`."""

import sys

from skep import Gateway

name = sys.argv[1] if len(sys.argv) > 1 else "Bee"
print(Gateway().request("hello-python", {"name": name}).payload["message"])
