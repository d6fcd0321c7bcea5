"""What went wrong, and what to do about it."""

from __future__ import annotations


class Failure(Exception):
    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
