"""Makes `made_tars` importable by its name: under importlib mode pytest puts no test folder on the path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
