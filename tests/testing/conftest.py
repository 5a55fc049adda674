"""The folder is importable, for what the tests of the contracts share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
