"""The worker of these tests is a script: it is found beside them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
