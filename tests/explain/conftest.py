"""Lets the tests of this folder say `from processes import ...` whatever pytest's import mode is."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
