"""Tests of dataflows run in this process; only `test_deploy` needs a node."""

from __future__ import annotations

import sys
from pathlib import Path

# `flows` lies beside the tests.
sys.path.insert(0, str(Path(__file__).parent))
