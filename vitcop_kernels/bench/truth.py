"""Is an op's answer right? Compared with the float64 reference; tolerances have their reasons beside them."""

import functools
import itertools
from typing import Any

import torch
from torch import Tensor

from vitcop_kernels.ops.vic_cluster import reference as vic

EXACT = ("select_tokens", "plan_tokens", "expand_plan")
# (relative, absolute) to the largest value of the output where the input is [float32, half precision].
TOLERANCES = {
    # Sums of 1e2 to 1e4 squares or products in float32: a random walk of 2^-24 each, with room.
    "key_norms": (1e-5, 1e-5),
    # exp of a score of up to about 10 in float32, whose error it multiplies: 10 * 2^-24 and the sum's.
    "attention_saliency": (1e-4, 1e-4),
    # float32 takes three passes of TF32; in half precision the normed row is rounded once, to 2^-9 an element.
    "key_proj_norms": (1e-4, 2.0**-9),
    "key_proj": (1e-4, 2.0**-8),  # the keys are rounded to the dtype, and the norms may be those of rounded keys
    "segment_mean": (1e-5, 2.0**-8),  # so are the means
    "segment_mean_backward": (1e-5, 2.0**-8),
    "compact_sequence": (1e-5, 2.0**-8),  # what it only copies comes out exact in any case
}
RELATIVE = 2.0**-15  # of d^2: the bound that tests/certificates.py uses and explains
LOG_ERROR = 2.0**-20


def tensors(value: Any) -> list[Tensor]:
    """All tensors of a result, those of lists in it too."""
    return [value] if isinstance(value, Tensor) else [t for part in value for t in tensors(part)]


def wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def same_bits(a: Any, b: Any) -> bool:
    return all(torch.equal(bits(x), bits(y)) for x, y in zip(tensors(a), tensors(b), strict=True))


def bits(t: Tensor) -> Tensor:
    return t.detach().contiguous().reshape(-1).view(torch.uint8)


def verify(op: str, args: tuple[Any, ...], kwargs: dict[str, Any], got: Any) -> None:
    """Raise AssertionError unless `got` is a right answer of the op."""
    want = getattr(torch.ops.vitcop_reference, op)(*map(wide, args), **kwargs)
    for k, (a, b) in enumerate(zip(tensors(got), tensors(want), strict=True)):
        if a.shape != b.shape:
            raise AssertionError(f"{op} output {k}: shape {tuple(a.shape)} instead of {tuple(b.shape)}")
    if op == "vic_cluster":
        _verify_batch(args, kwargs, got, want)
    elif op == "vic_cluster_varlen":
        _verify_packed(args, kwargs.get("center_counts"), got, want)
    elif op in EXACT:
        for k, (a, b) in enumerate(zip(tensors(got), tensors(want), strict=True)):
            if not torch.equal(a.to(b.dtype), b):
                raise AssertionError(f"{op} output {k}: {int((a != b).sum())} of {a.numel()} values differ")
    else:
        half = args[0].element_size() == 2
        for k, (a, b) in enumerate(zip(tensors(got), tensors(want), strict=True)):
            rtol = TOLERANCES[op][half]
            atol = rtol * float(b.double().abs().max()) * 1e-2
            message = functools.partial("{} output {}: {}".format, op, k)
            torch.testing.assert_close(a.double(), b.double(), rtol=rtol, atol=atol, msg=message)


def _verify_batch(args: tuple[Any, ...], kwargs: dict[str, Any], got: Any, want: Any) -> None:
    features, positions, d_c, tau, k = args[:5]
    if features.dim() == 2:
        return certify(features, positions, d_c, tau, k, got, want)
    for b, sample in enumerate(features):
        places = positions if positions.dim() == 2 else positions[b]
        certify(sample, places, d_c, tau, k, [t[b] for t in got], [t[b] for t in want])


def _verify_packed(args: tuple[Any, ...], counts: Tensor | None, got: Any, want: Any) -> None:
    features, positions, bounds, _, d_c, tau, k = args[:7]
    edges = bounds.tolist()
    for b, (start, end) in enumerate(itertools.pairwise(edges)):
        if start == end:
            continue
        centers = min(k, end - start) if counts is None else min(k, end - start, int(counts[b]))

        def cut(out: Any, b: int = b, start: int = start, end: int = end, k: int = centers) -> list[Tensor]:
            return [out[0][start:end], out[1][b, :k], *(t[start:end] for t in out[2:])]

        certify(features[start:end], positions[start:end], d_c, tau, centers, cut(got), cut(want))


def certify(features: Tensor, positions: Tensor, d_c: float, tau: float, num_centers: int, got: Any, want: Any) -> None:
    """One sample: equal to the truth, or different only where two distances or densities are as good as equal."""
    labels, centers, parent, rho, delta = got
    n = features.shape[0]
    x, real = features.double()[None], torch.ones(1, n, dtype=torch.bool, device=features.device)
    d2 = vic._squared_distances(x, real, "l2", 1.0, False)[0]
    level = vic._log_density(d2[None], real, d_c, "gaussian", 5, False)[0]
    slack = RELATIVE * d2.masked_fill(d2 == 0, torch.inf).amin(1) / d_c**2 + LOG_ERROR  # of L: its nearest terms rule

    def require(ok: Tensor, what: str) -> None:
        if not bool(ok.all()):
            raise AssertionError(f"vic_cluster: {what} ({int((~ok).sum())} of {ok.numel()} tokens)")

    away = (rho.double().log() - level).abs() <= slack + 1e-6
    require(away | (level < -80), "rho is not the density")  # below, float32 underflows
    if all(torch.equal(a, b) for a, b in zip(got[:3], want[:3], strict=True)):
        torch.testing.assert_close(got[4].double(), want[4], rtol=RELATIVE, atol=1e-30)
        return
    low, high = level - slack, level + slack
    near = vic._near(positions, tau).expand(n, n)
    index = torch.arange(n, device=features.device)
    require(((parent == -1).sum() == 1)[None], "not one token without a parent")
    child = parent >= 0
    father = parent.clamp(min=0)
    require(~child | (high[father] >= low), "a parent is less dense than its child")
    sure = low[None, :] > high[:, None]  # [i, j]: j is denser than i beyond doubt
    inside = torch.where(sure & near, d2, torch.inf).amin(1) * (1 + RELATIVE)
    anywhere = torch.where(sure, d2, torch.inf).amin(1) * (1 + RELATIVE)
    chosen, orphan = d2[index, father] * (1 - RELATIVE), delta.isinf()
    require(~child | orphan | (near[index, father] & (chosen <= inside)), "a nearer denser token was passed over")
    require(~orphan | inside.isinf(), "delta is inf, but a denser token is near")
    require(~(child & orphan) | (chosen <= anywhere), "a nearer denser token was passed over, beyond tau")
    exact = d2[index, father].sqrt()
    require(~child | orphan | ((delta.double() - exact).abs() <= RELATIVE * exact), "delta is not the distance")

    is_center = torch.zeros(n, dtype=torch.bool, device=features.device).scatter_(0, centers.clamp(min=0), True)
    require((is_center.sum() == num_centers)[None], f"not {num_centers} centres")
    gamma = torch.where(orphan | ~child, torch.inf, level + delta.double().log())
    doubt = torch.where(gamma.isinf(), 0.0, slack + RELATIVE)
    weakest = (gamma + doubt)[is_center].amin()
    require(is_center | (gamma - doubt <= weakest), "a better centre was passed over")
    require(labels[centers] == torch.arange(num_centers, device=labels.device), "a centre has not its own label")
    require(is_center | (labels == labels[father]), "a label is not that of the parent")
