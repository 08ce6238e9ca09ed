"""Measuring the ops: a check of the answer before any timing, samples taken in turn, intervals, and a roofline.

`vitcop bench` and the repository's benchmarks are built of these parts, and of the table of ops and shapes in
`vitcop_kernels.testing`:

- `sampling`: seconds of several ways to do the same, in turn, so that a drift of the machine falls on all alike;
- `statistics`: median, spread and confidence intervals, of times and of paired ratios;
- `floor`: what the machine copies and multiplies at best, and what a case cannot undercut;
- `measure`: all of it for one case;
- `record`: machine, versions and commit.
"""
