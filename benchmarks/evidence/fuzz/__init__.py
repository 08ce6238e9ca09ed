"""Fuzzing every op against a float64 truth, and three implementations of it against each other.

`python -m benchmarks.evidence.fuzz` runs 100,000 cases; `--replay op:seed` runs one. A case is drawn by cases.py from
its op and seed alone (by numpy's generator, whose streams may change with numpy), judged by the truths (truth_*.py,
clusters.py, certificate.py), and counted by campaign.py.
"""

from .report import section

__all__ = ["section"]
