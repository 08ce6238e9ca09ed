"""Clustering forks off as soon as Stage I has chosen and is joined before Stage II; it changes no bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_llava import batch, prompt

import vitcop
from vitcop import ViTCoP
from vitcop.engine.ahead import VisionContext
from vitcop.methods import Context, Method, Plan, Program, Stage


class Lane:
    """Stands for a side stream: does the work at the fork, and writes down when it was asked to."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def fork(self, work: Callable[[], Any]) -> Any:
        self.log.append("fork")
        try:
            return work()
        except BaseException:
            self.join(None)
            raise

    def join(self, result: Any) -> None:
        self.log.append("join")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    events: list[str] = []
    monkeypatch.setattr("vitcop.engine.run.lane_for", lambda device: Lane(events))
    return events


class Watched(ViTCoP):
    """Says when its stages and its clustering run."""

    log: list[str]

    def _stage1(self, ctx: Context) -> Plan:
        self.log.append("stage1")
        return super()._stage1(ctx)

    def _stage3(self, ctx: Context) -> Plan:
        self.log.append("stage3")
        return super()._stage3(ctx)

    def _stage2(self, clusters: Any, ctx: Context) -> Plan:
        self.log.append("stage2")
        return super()._stage2(clusters, ctx)

    def cluster(self, ctx: Context, center_ratio: float) -> Any:
        self.log.append("cluster")
        return super().cluster(ctx, center_ratio)


def watched(log: list[str], **options: Any) -> Watched:
    method = Watched(**{"retention": 0.3, **options})
    method.log = log
    return method


def test_it_runs_between_the_choices(llava: Any, log: list[str]) -> None:
    model = llava()
    decoder = model.model.language_model

    def layer_runs(index: int) -> Any:
        return lambda *_: log.append(f"layer {index}")

    hooks = [layer.mlp.register_forward_pre_hook(layer_runs(i)) for i, layer in enumerate(decoder.layers[:3])]
    try:
        with vitcop.prune(model, watched(log)), torch.no_grad():
            model(**batch([prompt(1)]))
    finally:
        for hook in hooks:
            hook.remove()
    assert log == [
        "stage1", "fork", "cluster", "layer 0", "layer 1", "join", "stage2", "layer 2", "stage3",
    ]  # fmt: skip


@pytest.mark.parametrize("semantics", ["paper", "released"])
@pytest.mark.parametrize("images", [(1,), (2,), (1, 2, 0, 1)])
def test_it_changes_no_bit(llava: Any, log: list[str], images: tuple[int, ...], semantics: str) -> None:
    model, inputs = llava(), batch([prompt(n) for n in images])
    method = ViTCoP(retention=0.3, semantics=semantics)
    with vitcop.prune(model, method) as beside, torch.no_grad():
        got = model(**inputs).logits
    assert log == ["fork", "join"]
    with pytest.MonkeyPatch.context() as patch, vitcop.prune(model, method) as inline, torch.no_grad():
        patch.setattr("vitcop.engine.run.lane_for", lambda device: None)
        expected = model(**inputs).logits
    assert torch.equal(got, expected)
    for a, b in zip(beside.stages, inline.stages, strict=True):
        assert torch.equal(a.kept, b.kept)
        assert (a.labels is None) == (b.labels is None) and (a.labels is None or torch.equal(a.labels, b.labels))


def test_time_spent_beside_counts_as_choosing(llava: Any, log: list[str]) -> None:
    model = llava()
    with vitcop.prune(model, ViTCoP(retention=0.3)) as report, torch.no_grad():
        model(**batch([prompt(1)]))
    first, second, third = report.stages
    assert first.seconds_ahead == third.seconds_ahead == 0 < second.seconds_ahead < second.seconds
    assert report.selection_seconds == first.seconds + second.seconds + third.seconds


def test_what_needs_the_decoder_is_not_started_early(llava: Any, log: list[str]) -> None:
    model = llava()
    for options in ({"features": "hidden"}, {"saliency": "key_norm_only"}):
        with vitcop.prune(model, watched(log, **options)), torch.no_grad():
            model(**batch([prompt(1)]))
        assert "fork" not in log
        log.clear()


def test_an_exception_between_fork_and_join(llava: Any, log: list[str]) -> None:
    model, inputs = llava(), batch([prompt(1)])

    def fail(*_: Any) -> None:
        raise KeyError("layer 1")

    with vitcop.prune(model, watched(log)), torch.no_grad():
        good = model(**inputs).logits
        hook = model.model.language_model.layers[1].mlp.register_forward_pre_hook(fail)
        log.clear()
        try:
            with pytest.raises(KeyError, match="layer 1"):
                model(**inputs)
        finally:
            hook.remove()
        assert log == ["stage1", "fork", "cluster", "join"]
        log.clear()
        assert torch.equal(model(**inputs).logits, good)
        assert log == ["stage1", "fork", "cluster", "join", "stage2", "stage3"]


def test_an_exception_in_the_work_itself(llava: Any, log: list[str]) -> None:
    class Broken(Watched):
        broken = True

        def cluster(self, ctx: Context, center_ratio: float) -> Any:
            if self.broken:
                raise KeyError("cluster")
            return super().cluster(ctx, center_ratio)

    model, method, inputs = llava(), Broken(retention=0.3), batch([prompt(1)])
    method.log = log
    with vitcop.prune(model, method), torch.no_grad():
        with pytest.raises(KeyError, match="cluster"):
            model(**inputs)
        assert log == ["stage1", "fork", "join"]
        method.broken = False
        log.clear()
        model(**inputs)
    assert log == ["stage1", "fork", "cluster", "join", "stage2", "stage3"]


def test_the_first_stage_may_have_work_ahead(llava: Any, log: list[str]) -> None:
    """It starts before layer 0, also where the stage stands at a later layer."""
    seen = []

    class Method1(Method):
        def program(self, num_layers: int) -> Program:
            def select(ctx: Any) -> Plan:
                seen.append(ctx.ahead)
                return Plan(ctx.ahead.topk(ctx.budget).indices.sort().values)

            return Program([Stage("only", 2, select, ahead=lambda ctx: ctx.saliency)], lambda m: [m // 2])

    model = llava()
    with vitcop.prune(model, Method1()), torch.no_grad():
        model(**batch([prompt(1)]))
    assert log == ["fork", "join"]
    assert seen[0].shape == (1, 16)


@pytest.mark.parametrize("name", ["hidden", "key_norms", "attention"])
def test_the_decoder_cannot_be_looked_at(llava: Any, name: str) -> None:
    class Early(Method):
        def program(self, num_layers: int) -> Program:
            stage = Stage("only", 2, lambda ctx: ctx.ahead, ahead=lambda ctx: getattr(ctx, name))
            return Program([stage], lambda m: [m // 2])

    message = f"ahead: expected one of .*, got '{name}'"
    with vitcop.prune(llava(), Early()), torch.no_grad(), pytest.raises(AttributeError, match=message):
        llava()(**batch([prompt(1)]))
    assert not hasattr(VisionContext(None), name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_changes_no_bit(llava: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import copy

    model = copy.deepcopy(llava()).cuda()
    inputs = {name: tensor.cuda() for name, tensor in batch([prompt(1), prompt(2)]).items()}
    with vitcop.prune(model, ViTCoP(retention=0.3)) as report, torch.no_grad():
        beside = [model(**inputs).logits for _ in range(20)]
        assert report.stages[1].seconds_ahead > 0
        monkeypatch.setattr("vitcop.engine.run.lane_for", lambda device: None)
        inline = model(**inputs).logits
    assert all(torch.equal(logits, inline) for logits in beside)
