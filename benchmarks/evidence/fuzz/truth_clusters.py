"""vic_cluster and vic_cluster_varlen: each sample's truth, and its certificates."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cases import Case
from .certificate import KERNEL, REFERENCE, Certificate, Precision
from .clusters import Clusters, Options, Sample, cluster
from .verdicts import Verdict, double, form, mismatch, worst

NAMES = ("labels", "centers", "parent", "rho", "delta")


class OneSample:
    def __init__(
        self, features: np.ndarray, positions: np.ndarray | None, d_c: float, tau: float, num_centers: int,
        valid: np.ndarray | None, count: int | None, options: Options,
    ) -> None:  # fmt: skip
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
                    x[part], None if places is None else places[part], d_c, tau, k, None,
                    None if counts is None else int(counts[b]), options,
                )
                for b, part in enumerate(self.parts)
            ]  # fmt: skip
        else:
            d_c, tau, k, valid, counts = case.args[2:]
            self.parts = []
            x, valid = (x[None], None if valid is None else valid[None]) if self.flat else (x, valid)
            counts = counts[None] if self.flat and counts is not None else counts
            self.samples = [
                OneSample(
                    x[b], places[b] if places is not None and places.ndim == 3 else places, d_c, tau, k,
                    None if valid is None else valid[b].numpy(), None if counts is None else int(counts[b]), options,
                )
                for b in range(len(x))
            ]  # fmt: skip
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
