"""Versions, where everything finds them."""

VERSION = "0.1.0"
#: The WIT package that a built component speaks; a node says which it takes.
WIT = "0.1.0"
