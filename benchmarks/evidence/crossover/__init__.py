"""Where pruning pays, end to end on a CPU, and where it does not: prefill and decoding, pruned over unpruned.

python -m benchmarks.evidence.crossover [--rounds 7] [--quick]
"""

from .document import section

__all__ = ["section"]
