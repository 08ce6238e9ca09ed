"""The speed half of `make gpu-report`: the ops, stages and whole models on one GPU, in less than 5 minutes.

python -m benchmarks.gpu [--dry-run] [--quick] [--only PART] [--out DIR]

Whatever torch, Triton and transformers the GPU has, no network, no installation: PYTHONPATH=.:python is enough.
Every answer is held to the float64 truth before it is timed (`python -m verification.gpu` checks more, before).
Without a GPU, `--dry-run` walks every path at tiny sizes on a CPU; what it writes says so.
"""
