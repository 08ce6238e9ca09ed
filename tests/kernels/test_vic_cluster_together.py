"""vic_cluster in one cooperative launch: the bits of the plain launches, and barriers that neither hang nor leak."""

from typing import Any

import pytest
import torch
from cooperative import Deadlock, run_together
from launchers import DEVICE, INTERPRETED, launch
from support import assert_same_bits

from vitcop_kernels.ops.vic_cluster import kernel as launcher
from vitcop_kernels.ops.vic_cluster import phases

NAN = float("nan")


def as_one_launch(op: str, *args: Any, **options: Any) -> Any:
    """The op by its one launch, programs at the same time on a CPU too."""

    def together(grid: tuple[int, int], arguments: Any, constants: dict[str, Any]) -> None:
        run_together(phases.vic_kernel, grid, *arguments, PHASE=phases.ALL, **constants)

    launched = []
    with pytest.MonkeyPatch.context() as patch:
        on_gpu = launcher.launch_together

        def count(*call: Any) -> None:
            launched.append(call)
            (on_gpu if DEVICE == "cuda" else together)(*call)

        patch.setattr(launcher, "fits", lambda *_: True)
        patch.setattr(launcher, "launch_together", count)
        got = launch(op, *args, **options)
    assert len(launched) == 1
    return got


def by_phases(op: str, *args: Any, **options: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "fits", lambda *_: False)
        return launch(op, *args, **options)


def assert_both_shapes_agree(op: str, *args: Any, **options: Any) -> None:
    assert_same_bits(as_one_launch(op, *args, **options), by_phases(op, *args, **options))


OPTIONS: list[dict[str, Any]] = [{}, dict(include_self=True, root_delta="max", metric="cosine")]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_both_shapes_give_the_same_bits(options: dict[str, Any]) -> None:
    """Three tiles a sample, two samples of which one has padding and a bad token."""
    features = torch.randn(2, 60, 24) * 2
    features[0, 7], features[1, 3, 5] = features[0, 9], NAN
    valid = torch.rand(2, 60) < 0.9
    assert_both_shapes_agree("vic_cluster", features, torch.rand(2, 60, 2), 8.0, 0.5, 9, valid, **options)


def test_low_precision() -> None:
    assert_both_shapes_agree("vic_cluster", torch.randn(70, 32).bfloat16(), None, 8.0, 0.5, 9)


def test_offsets_are_removed_behind_two_more_barriers() -> None:
    features = torch.stack([torch.randn(40, 16).bfloat16() + 100, torch.randn(40, 16).bfloat16()])
    assert_both_shapes_agree("vic_cluster", features, None, 8.0, 0.5, 9)


def test_a_sample_beyond_float32_beside_one_within() -> None:
    features = torch.randn(2, 36, 4)
    features[0] *= 1e25
    features[1, :20] = 0
    assert_both_shapes_agree("vic_cluster", features[:, :36:3], None, 8.0e25, 0.5, 5)


def test_packed_samples_have_barriers_of_their_own() -> None:
    """Programs beyond a sample's end leave at once, and nobody waits for them."""
    cu = torch.tensor([0, 5, 5, 75, 100], dtype=torch.int32)
    assert_both_shapes_agree("vic_cluster_varlen", torch.randn(100, 16), torch.rand(100, 2), cu, 80, 8.0, 0.5, 6)


def test_runs_agree_whatever_the_order_of_the_programs() -> None:
    features = torch.randn(70, 16).repeat(1, 1)
    features[35:] = features[:35]
    runs = [as_one_launch("vic_cluster", features, None, 8.0, 0.5, 9) for _ in range(2)]
    for run in runs[1:]:
        assert_same_bits(run, runs[0])


@pytest.mark.skipif(DEVICE == "cuda", reason="a device does not start a grid that does not fit")
def test_a_program_that_never_runs_is_noticed() -> None:
    """The harness does see a deadlock: were the grid not resident at once, the kernel would wait for ever."""

    def together(grid: tuple[int, int], arguments: Any, constants: dict[str, Any]) -> None:
        run_together(phases.vic_kernel, grid, *arguments, PHASE=phases.ALL, seconds=3.0, skip=1, **constants)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "fits", lambda *_: True)
        patch.setattr(launcher, "launch_together", together)
        with pytest.raises(Deadlock):
            launch("vic_cluster", torch.randn(40, 16), None, 8.0, 0.5, 5)


def test_without_a_device_the_phases_are_launched_one_by_one() -> None:
    if INTERPRETED:
        assert not launcher.fits((1, 1), None, {})  # type: ignore[arg-type]
