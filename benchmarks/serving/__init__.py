"""What pruning is worth to a server: the same load on vLLM's own LLaVA and on images of B tokens.

python -m benchmarks.serving run       starts the servers, asks them in turn, writes results/serving/<device>.json
python -m benchmarks.serving report    writes the tables of docs/serving.md from committed results

Needs vLLM (`make test-vllm` installs its build for CPUs into .venv-vllm). Without --model the checkpoint has the
geometry of LLaVA-1.5 (576 tokens) in narrow widths and random weights: its answers are noise, and its tower is about as
small beside its decoder as LLaVA-1.5-7B's is. Numbers of a CPU are meant as ratios.
"""
