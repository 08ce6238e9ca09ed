"""How time and memory grow with tokens, width, batch and threads: slopes on logarithmic axes, and their ranges.

python -m benchmarks.evidence.scale [--largest 16384] [--seconds 3] [--quick]
"""

from .document import section

__all__ = ["section"]
