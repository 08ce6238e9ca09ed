"""What is right, for every op once: inputs, truths, bounds, malformed calls, real shapes and their work.

- `table`: the one table of ops; a row is a module in `ops/`;
- `op`: what a row is, and what a case is;
- `draw`, `values`: the fuzzer's choices; `boundary`: bytes to calls, good or malformed;
- `judge`, `verdicts`, `numbers`, `clusters`, `certificate`: the truths in float64, and who passes;
- `contract`: what may come of any call; `permutation`: what shuffled tokens do; `implementations`: the three of them.
"""
