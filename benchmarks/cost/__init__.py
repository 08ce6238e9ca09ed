"""An estimate of what each op costs on a named GPU: bytes, FLOPs, launches and serial steps, turned into microseconds.

python -m benchmarks.cost --gpu H200

Estimates, every one of them: nothing here was measured on a GPU. `make gpu-report` sets each beside its measurement.
"""
