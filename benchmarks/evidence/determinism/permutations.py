"""What permuting the tokens of a call does to its answer, stated for each op and checked on inputs without ties."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.evidence.fuzz.judge import flat, same

Call = Callable[..., Any]
Outcome = str  # "same bits", "same answer" (equal to rounding, or the same partition) or "another answer"
STATED = dict(
    key_norms="Norms go with their tokens, bit for bit.",
    key_proj="Keys and norms go with their tokens, equal to rounding: a matrix product may sum rows in several ways.",
    key_proj_norms="Norms go with their tokens, equal to rounding: a matrix product may sum rows in several ways.",
    attention_saliency="Saliencies go with their keys, equal to rounding: a softmax sums over tokens in their order.",
    select_tokens="The same tokens are chosen. Where equal scores meet at the cut, those of lower index.",
    vic_cluster="The same partition and centres. Among equal densities or distances the lower index wins.",
    vic_cluster_varlen="Samples in another order: the same bits, sample by sample.",
    plan_tokens="The same elites and the same groups. Ties go to the lower index, and a group's anchor is its middle "
    "token by index, so it may be another.",
    segment_mean="With `perm` renamed, in its order: the same bits.",
    segment_mean_backward="With `perm` renamed, in its order: gradients go with their tokens, bit for bit.",
    compact_sequence="With `perm` and `anchors` renamed: the same bits.",
    expand_plan="Visual tokens in another order, `slots` with them and `perm` and `anchors` renamed: the same plan.",
)


class Shuffle:
    """A permutation of n tokens: new token i is old token `order[i]`."""

    def __init__(self, n: int, generator: torch.Generator) -> None:
        self.order = torch.randperm(n, generator=generator)
        self.place = torch.empty_like(self.order)
        self.place[self.order] = torch.arange(n)

    def renamed(self, index: Tensor) -> Tensor:
        """Old indices as new ones; -1 stays."""
        return torch.where(index < 0, index, self.place[index.clamp(min=0)])


def numbers(got: Any, want: Any, dtype: torch.dtype) -> Outcome:
    if same(got, want):
        return "same bits"
    eps = 64 * torch.finfo(dtype).eps  # sums in another order
    near = all(torch.allclose(a.double(), b.double(), rtol=eps, atol=eps * float(b.double().abs().max()))
               for a, b in zip(flat(got), flat(want), strict=True))  # fmt: skip
    return "same answer" if near else "another answer"


def indices(got: list[Tensor], want: list[Tensor]) -> Outcome:
    return "same bits" if same(got, want) else "another answer"


def permuted(op: str, call: Call, n: int, dtype: torch.dtype, seed: int) -> Outcome:
    """One random input of n tokens: the answer of the shuffled call against the shuffled answer."""
    generator = torch.Generator().manual_seed(seed)
    shuffle = Shuffle(n, generator)
    order = shuffle.order

    def r(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def distinct() -> Tensor:
        return torch.randperm(n, generator=generator).float()

    if op == "key_norms":
        keys = r(3, n, 20)
        return numbers(call(keys[:, order]), call(keys)[order], torch.float32)
    if op in ("key_proj", "key_proj_norms"):
        x, weight = r(n, 48), r(24, 48)
        got, want = call(x[order], weight, num_heads=3), call(x, weight, num_heads=3)
        want = want[order] if op == "key_proj_norms" else (want[0][:, order], want[1][order])
        return numbers(got, want, dtype)
    if op == "attention_saliency":
        query, key = r(4, 2, 16), r(2, n, 16)
        return numbers(call(query, key[:, order]), call(query, key)[order], torch.float32)
    if op == "select_tokens":
        scores, k = distinct(), n // 3
        return indices([call(scores[order], k)], [shuffle.renamed(call(scores, k)).sort().values])
    if op == "plan_tokens":
        return _plan(call, shuffle, torch.arange(n) % max(1, n // 6), distinct(), n // 2 + 1)
    if op.startswith("vic_cluster"):
        # Whole numbers would tie; bfloat16 and float16 hold too few numbers not to.
        return _clusters(op, call, shuffle, torch.randn(n, 12, generator=generator), generator)
    if op == "expand_plan":
        return _expand(call, shuffle, generator)
    perm, offsets = torch.randperm(n, generator=generator), torch.arange(n // 2 + 1) * 2
    anchors, merged = perm[: 2 * (n // 2) : 2], torch.ones(n // 2, dtype=torch.bool)
    plan = (perm, offsets, anchors, merged)
    renamed = (shuffle.renamed(perm), offsets, shuffle.renamed(anchors), merged)
    options = dict(merge="anchor_plus_mean")
    if op == "segment_mean_backward":
        grad = r(n // 2, 9)
        return numbers(call(grad, *renamed, **options), call(grad, *plan, **options)[order], dtype)
    x, beside = r(n, 9), r(n, 3)
    if op == "segment_mean":
        return numbers(call(x[order], *renamed, **options), call(x, *plan, **options), dtype)
    return numbers(call(x[order], [beside[order]], *renamed, **options), call(x, [beside], *plan, **options), dtype)


def _segments(plan: tuple[Tensor, ...], names: Tensor) -> set[tuple[bool, frozenset[int]]]:
    perm, offsets, _, merged = plan
    parts = [perm[a:b] for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]
    return {(bool(m), frozenset(names[p].tolist())) for p, m in zip(parts, merged, strict=True)}


def _plan(call: Call, shuffle: Shuffle, labels: Tensor, scores: Tensor, budget: int) -> Outcome:
    k = int(labels.max()) + 1
    got = call(labels[shuffle.order], scores[shuffle.order], k, budget)
    want = call(labels, scores, k, budget)
    alike = _segments(got, shuffle.order) == _segments(want, torch.arange(len(labels)))
    return "same answer" if alike else "another answer"


def _clusters(op: str, call: Call, shuffle: Shuffle, x: Tensor, generator: torch.Generator) -> Outcome:
    n, k = len(x), max(1, len(x) // 6)
    places = torch.rand(n, 2, generator=generator)
    if op == "vic_cluster_varlen":
        cut = n // 3
        cu, other = torch.tensor([0, cut, n]), torch.tensor([0, n - cut, n])
        turned = torch.cat([torch.arange(cut, n), torch.arange(cut)])
        got = call(x[turned], places[turned], other, n, 4.0, 0.5, k)
        want = call(x, places, cu, n, 4.0, 0.5, k)
        return indices(list(got), [t.flip(0) if i == 1 else t[turned] for i, t in enumerate(want)])
    got, want = call(x[shuffle.order], places[shuffle.order], 4.0, 0.5, k), call(x, places, 4.0, 0.5, k)
    labels = want[0][shuffle.order]
    alike = torch.equal(got[0][:, None] == got[0], labels[:, None] == labels)
    alike &= torch.equal(shuffle.order[got[1]].sort().values, want[1])
    return "same answer" if alike else "another answer"


def _expand(call: Call, shuffle: Shuffle, generator: torch.Generator) -> Outcome:
    """n visual tokens among 2n slots, merged in pairs."""
    n = len(shuffle.order)
    slots = torch.randperm(2 * n, generator=generator)[:n].sort().values
    perm, offsets = torch.randperm(n, generator=generator), torch.arange(n // 2 + 1) * 2
    anchors = perm[: 2 * (n // 2) : 2]
    shape = dict(num_slots=2 * n, out_len=n + n // 2)
    want = call(slots, anchors, perm, offsets, None, None, **shape)
    renamed = (slots[shuffle.order], shuffle.renamed(anchors), shuffle.renamed(perm), offsets)
    return indices(list(call(*renamed, None, None, **shape)), list(want))
