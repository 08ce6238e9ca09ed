"""Measuring the ops: shapes, a check of the answer before any timing, samples taken in turn, intervals, and a floor.

`vitcop bench` and the repository's benchmarks are built of these parts:

- `cases`: an op at a shape, with inputs;
- `truth`: whether an answer is right;
- `sampling`: seconds of several ways to do the same, in turn, so that a drift of the machine falls on all alike;
- `statistics`: median, spread and confidence intervals, of times and of paired ratios;
- `floor`: what the machine copies and multiplies at best, and what a case cannot undercut;
- `measure`: all of it for one case;
- `record`: machine, versions and commit.
"""
