"""The checks of `make gpu-report`: every op on one GPU, in three minutes, before anything is timed.

python -m verification.gpu [--dry-run] [--part smoke|check|sanitize]

Odd small sizes, then the real shapes of the table: values against float64, the same bits 1000 times, replays of a
graph, no host sync; and compute-sanitizer where it is there. Whatever torch and Triton the GPU has, no installation.
"""
