"""What vic_cluster and vic_cluster_varlen share: each sample's truth and certificate."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..boundary import Bytes, Call, require, within
from ..certificate import KERNEL, REFERENCE, Certificate, Precision
from ..clusters import Clusters, Options, Sample, cluster
from ..draw import Draw
from ..inputs import INF, NAN
from ..op import BadCall, Case, Dims
from ..values import BROKEN, PLAIN, RANGE, rows
from ..verdicts import Verdict, double, form, mismatch, worst

NAMES = ("labels", "centers", "parent", "rho", "delta")
D_C, TAU = 8.0, 0.6


class OneSample:
    def __init__(
        self,
        features: np.ndarray,
        positions: np.ndarray | None,
        d_c: float,
        tau: float,
        num_centers: int,
        valid: np.ndarray | None,
        count: int | None,
        options: Options,
    ) -> None:
        valid = np.ones(len(features), bool) if valid is None else valid
        self.num_centers, self.count = num_centers, count
        self.sample = Sample(features, positions, d_c, tau, valid, options)
        self.truth = cluster(self.sample, num_centers, count) if len(features) else None
        self.certificates: dict[Precision, Certificate] = {}

    def judge(self, got: Clusters, precision: Precision) -> Verdict:
        if self.truth is None:
            wrong = (got.centers != -1).any()
            return mismatch("centers: an empty sample has none") if wrong else Verdict("exact")
        if precision not in self.certificates:
            self.certificates[precision] = Certificate(self.sample, precision)
        verdict = self.certificates[precision].judge(got, self.num_centers, self.count)
        same = all(np.array_equal(getattr(got, name), getattr(self.truth, name)) for name in NAMES[:3])
        return Verdict("exact", verdict.error) if same and verdict.kind == "certified" else verdict


class Clustering:
    """Indices equal to the truth's are exact, densities and distances within the bounds; else a certificate."""

    def __init__(self, case: Case) -> None:
        packed = case.op == "vic_cluster_varlen"
        features, positions = case.args[:2]
        self.dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        self.input = features.dtype
        options = Options(**case.kwargs)
        x, places = double(features), None if positions is None else double(positions)
        self.flat = features.dim() == 2
        if packed:
            cu, _, d_c, tau, k, counts = case.args[2:]
            self.parts = [slice(a, b) for a, b in pairwise(cu.tolist())]
            self.samples = [
                OneSample(
                    x[part],
                    None if places is None else places[part],
                    d_c,
                    tau,
                    k,
                    None,
                    None if counts is None else int(counts[b]),
                    options,
                )
                for b, part in enumerate(self.parts)
            ]
        else:
            d_c, tau, k, valid, counts = case.args[2:]
            self.parts = []
            x, valid = (x[None], None if valid is None else valid[None]) if self.flat else (x, valid)
            counts = counts[None] if self.flat and counts is not None else counts
            self.samples = [
                OneSample(
                    x[b],
                    places[b] if places is not None and places.ndim == 3 else places,
                    d_c,
                    tau,
                    k,
                    None if valid is None else valid[b].numpy(),
                    None if counts is None else int(counts[b]),
                    options,
                )
                for b in range(len(x))
            ]
        lead = tuple(features.shape[:-1])
        wide = (len(self.samples), k) if packed or not self.flat else (k,)
        self.shapes = dict(labels=lead, centers=wide, parent=lead, rho=lead, delta=lead)

    def judge(self, got: tuple[Tensor, ...], implementation: str) -> Verdict:
        for name, t in zip(NAMES, got, strict=True):
            dtype = self.dtype if name in ("rho", "delta") else torch.int64
            if bad := form(name, t, self.shapes[name], dtype):
                return bad
        precision = KERNEL
        if self.input == torch.float64:
            precision = Precision(REFERENCE.distance, REFERENCE.level, REFERENCE.unit, single=False)
        elif implementation == "reference":
            precision = REFERENCE
        return worst(one.judge(self.part(got, b), precision) for b, one in enumerate(self.samples))

    def part(self, got: tuple[Tensor, ...], b: int) -> Clusters:
        values: list[Any] = []
        for name, t in zip(NAMES, got, strict=True):
            if self.parts and name != "centers":
                t = t[self.parts[b]]
            elif self.parts or not self.flat:
                t = t[b]
            values.append(t.double().numpy() if name in ("rho", "delta") else t.numpy())
        return Clusters(*values)


def drawn_options(draw: Draw) -> dict[str, Any]:
    return dict(
        semantics=draw.pick(["paper", "paper", "released"]),
        metric=draw.pick(["l2", "l2", "l2", "cosine"]),
        dist_scale=draw.pick([1.0, 1.0, 1.0, 0.25, 3.0]),
        density=draw.pick(["gaussian", "gaussian", "knn"]),
        knn=draw.pick([1, 3, 5, 500]),
        include_self=draw.pick([None, None, True, False]),
        assign=draw.pick(["parent", "parent", "nearest"]),
        root_delta=draw.pick(["inf", "inf", "max"]),
    )


def drawn_features(draw: Draw, lead: tuple[int, ...], n: int) -> tuple[torch.dtype, str, Tensor, float]:
    """Tokens, and a cutoff near their distances or far from them."""
    dtype = draw.dtype()
    structure = draw.pick([*PLAIN * 2, *RANGE, *BROKEN])
    width = draw.size(max(1, min(300, 2**26 // n**2)))
    x = rows(draw, (*lead, n, width), dtype, structure)
    if dtype == torch.float16 and structure != "huge" and draw.chance(2):
        x = x * 0.25
    finite = x.double().nan_to_num(0, 0, 0)
    typical = float(finite.std()) * width**0.5 if finite.numel() > 1 else 1.0
    cutoff = min(1e30, max(1e-30, typical)) * draw.pick([1.0, 1.0, 0.3, 3.0, 0.02, 100.0])
    return dtype, structure, x, draw.pick([cutoff, cutoff, cutoff, 8.0])


def drawn_positions(draw: Draw, lead: tuple[int, ...], n: int) -> tuple[Tensor | None, float]:
    kind = draw.pick(["none", "raster", "raster", "random", "coarse"])
    tau = draw.pick([INF, 0.6, 0.5, 0.25, 0.1, 0.0])
    if kind == "none":
        return None, tau
    side = int(np.ceil(n**0.5))
    if kind == "raster":
        places = np.stack([np.arange(n) // side, np.arange(n) % side], -1) / side
    elif kind == "random":
        places = draw.rng.random((*lead, n, draw.pick([1, 2, 3])))
    else:
        places = draw.integers(0, 4, (*lead, n, 2)) / 4
    t = torch.from_numpy(places).to(draw.pick([torch.float32, torch.float32, torch.float64, torch.bfloat16]))
    return draw.laid_out(t), tau


def built_options(b: Bytes) -> dict[str, Any]:
    return dict(
        d_c=b.pick((8.0, 0.5, 1e-30, 1e30)),
        tau=b.pick((0.6, float("inf"), 0.0)),
        semantics=b.pick(("paper", "released")),
        metric=b.pick(("l2", "cosine")),
        dist_scale=b.pick((1.0, 0.1, 1e30)),
        density=b.pick(("gaussian", "knn")),
        knn=b.pick((5, 1, 1000, 2**63 - 1)),
        include_self=b.pick((None, True, False)),
        assign=b.pick(("parent", "nearest")),
        root_delta=b.pick(("inf", "max")),
    )


def cluster_flops(c: Dims) -> float:
    """Half of the distance matrix, which is symmetric; and a few operations on each entry."""
    pairs = c["batch"] * c["tokens"] * (c["tokens"] + 1) / 2
    return 2.0 * pairs * c["width"] + 8.0 * pairs


def check_values(call: Call, got: list[Tensor]) -> None:
    n = call.given["features"].shape[-2]
    within(call, "labels", got[0], -1, call.given["num_centers"])
    within(call, "centers", got[1], -1, n)
    within(call, "parent", got[2], -1, n)
    require(not got[3].isnan().any() and (got[3] >= 0).all(), call, "rho: {}", got[3])
    require(not got[4].isnan().any() and (got[4] >= 0).all(), call, "delta: {}", got[4])


CLUSTERING: list[BadCall] = [
    (dict(d_c=0.0), ValueError, "d_c: expected a positive finite number, got 0"),
    (dict(d_c=-8.5), ValueError, "d_c: expected a positive finite number, got -8.5"),
    (dict(d_c=INF), ValueError, "d_c: expected a positive finite number, got inf"),
    (dict(d_c=NAN), ValueError, "d_c: expected a positive finite number, got nan"),
    (dict(tau=-0.6), ValueError, "tau: expected a number, at least 0 (inf: no spatial limit), got -0.6"),
    (dict(tau=NAN), ValueError, "tau: expected a number, at least 0 (inf: no spatial limit), got nan"),
    (dict(semantics="original"), ValueError, 'semantics: expected "paper" or "released", got "original"'),
    (dict(metric="l1"), ValueError, 'metric: expected "l2" or "cosine", got "l1"'),
    (dict(dist_scale=0.0), ValueError, "dist_scale: expected a number from 1e-100 to 1e100, got 0"),
    (dict(dist_scale=NAN), ValueError, "dist_scale: expected a number from 1e-100 to 1e100, got nan"),
    (dict(dist_scale=1e300), ValueError, "dist_scale: expected a number from 1e-100 to 1e100, got 1e+300"),
    (dict(density="kde"), ValueError, 'density: expected "gaussian" or "knn", got "kde"'),
    (dict(knn=0), ValueError, "knn: expected at least 1, got 0"),
    (dict(assign="soft"), ValueError, 'assign: expected "parent" or "nearest", got "soft"'),
    (dict(root_delta="zero"), ValueError, 'root_delta: expected "inf" or "max", got "zero"'),
]
