"""How long each op takes at real shapes: beside its reference, compiled, as the authors wrote it, peers, and the floor.

python -m benchmarks.evidence.speed [--only OP] [--seconds 4] [--no-compile] [--quick]
"""

from .document import section

__all__ = ["section"]
