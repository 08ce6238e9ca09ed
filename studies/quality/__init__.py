"""What pruning costs in right answers: every method on vitcop-tiny, question by question, with intervals.

`python -m studies.quality report` makes tables and figures from committed answers, `run` asks again.
"""
