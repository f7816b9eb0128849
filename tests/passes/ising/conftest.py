"""The small nets of the channel groups serve the scoring of keep-states, too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "structure"))
