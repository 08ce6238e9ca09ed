"""`make gpu-report`: check every op on a GPU, then measure the ops and whole models, in less than 8 minutes.

python -m benchmarks.gpu [--dry-run] [--quick] [--only PART] [--out DIR]

One GPU, whatever torch, Triton and transformers it has, no network, no installation: PYTHONPATH=.:python is enough.
Nothing is timed that did not come out right. Without a GPU, `--dry-run` walks every path at tiny sizes on a CPU; what
it writes says so and is never taken for a measurement.
"""
