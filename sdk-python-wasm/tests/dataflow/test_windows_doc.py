"""The page about windows: its program runs, and the tests that it names are there."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "dataflow-windows.md"


def test_the_program_of_the_page_runs() -> None:
    found = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8")
    assert found.failed == 0
    assert found.attempted > 10


def test_the_tests_that_the_page_names_are_there() -> None:
    names = set(re.findall(r"`(test_\w+)`", PAGE.read_text()))
    assert len(names) > 10
    here = Path(__file__).with_name("test_windows.py").read_text()
    assert {name for name in names if f"def {name}(" not in here} == set()
