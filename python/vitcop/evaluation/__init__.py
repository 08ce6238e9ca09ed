"""Accuracy of pruned models, by lmms-eval: `pip install 'vitcop[eval]'`, then `vitcop eval`."""
