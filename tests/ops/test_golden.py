"""The golden vectors of the released code, from the kernels and from the references, to the last index."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support import op_of

import vitcop_kernels

VECTORS = sorted((Path(__file__).parent.parent / "vectors").glob("*.npz"))


def test_all_vectors_are_here() -> None:
    assert [f.stem for f in VECTORS] == [
        "few_budget",
        "iid_r64",
        "llava15_r128",
        "llava15_r192",
        "llava15_r64",
        "orphans",
    ]


def partition(labels: np.ndarray) -> list[tuple[int, ...]]:
    """Clusters without their names; -1 stays apart, as it names no cluster."""
    groups = [tuple(np.flatnonzero(labels == label)) for label in np.unique(labels) if label >= 0]
    return [tuple(np.flatnonzero(labels == -1)), *sorted(groups)]


@pytest.mark.parametrize("namespace", ["vitcop", "vitcop_reference"])
@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_the_released_semantics_reproduce_the_released_code(path: Path, batch: int, namespace: str) -> None:
    with np.load(path) as golden:
        features, positions, scores = (torch.from_numpy(golden[k]) for k in ("features", "positions", "k_norms"))
        if batch:
            features, scores = (t.expand(batch, *t.shape) for t in (features, scores))
        k = vitcop_kernels.num_centers_for(float(golden["alpha"]), len(golden["labels"]), semantics="released")
        result = op_of(namespace, "vic_cluster")(
            features, positions, float(golden["d_c"]), float(golden["tau"]), k, semantics="released"
        )
        plan = op_of(namespace, "plan_tokens")(result[0], scores, k, int(golden["budget"]), quota="released")
        for b in range(max(batch, 1)):
            labels, perm, offsets, anchors, merged = (t[b].numpy() if batch else t.numpy() for t in (result[0], *plan))
            assert partition(labels) == partition(golden["labels"])

            used = anchors >= 0
            assert anchors[used & ~merged].tolist() == sorted(golden["elites"].astype(int).tolist())
            groups = {anchors[s]: sorted(perm[offsets[s] : offsets[s + 1]]) for s in np.flatnonzero(merged)}
            starts = golden["group_ptr"]
            assert groups == {
                place: sorted(golden["group_idx"][starts[g] : starts[g + 1]])
                for g, place in enumerate(golden["merged_positions"])
            }
            assert used.sum() == len(golden["elites"]) + len(golden["merged_positions"])
