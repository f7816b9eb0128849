"""The small nets of the search spaces serve the tokens, too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "architecture"))
