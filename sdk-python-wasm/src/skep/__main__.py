"""``python3 -m skep`` is ``skep-py``."""

import sys

from .tool.cli import main

sys.exit(main())
