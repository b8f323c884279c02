"""Lets these tests share the modules named `small_…`.

The tests are no package, and a library that brings a package `tests` of its own would hide it.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
