"""What can be counted about correctness and speed: `python -m benchmarks.evidence` writes docs/evidence.md of it.

A topic is a module or package here. Running it (`python -m benchmarks.evidence.<topic>`) writes
benchmarks/results/evidence/<topic>.json, and its `section(found)` turns that file into a part of the page.
"""
