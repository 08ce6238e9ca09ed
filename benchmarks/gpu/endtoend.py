"""Prefill, decoding and memory of whole models: unpruned, ViTCoP, the same counts chosen for free, other methods."""

import contextlib
import functools
import inspect
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from vitcop_kernels.bench.device import Device

from .budget import Budget
from .models import TEXT, Spec, available, build_model, methods, prompt
from .timing import quantiles

Record = dict[str, Any]
USED = ("attention_saliency", "select_tokens", "vic_cluster", "vic_cluster_varlen", "key_proj_norms", "plan_tokens")
USED += ("segment_mean", "expand_plan", "compact_sequence")


def measure_models(
    device: Device,
    specs: list[Spec],
    wrong: dict[str, str],
    budget: Budget,
    rounds: int,
    steps: int,
    records: list[Record],
) -> None:
    """Adds a record a model: its runs, or why there are none."""
    for spec in specs:
        record: Record = {"model": spec.name, "visual_tokens": spec.visual, "text_tokens": TEXT, "layers": spec.layers}
        record |= {"weights": "random", "dtype": "bfloat16", "runs": []}
        record |= {"status": "not measured", "why": "stopped before it was built"}
        records.append(record)
        try:
            why = available(spec)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        if why is not None:
            record |= {"status": "not available", "why": why}
            continue
        need, free = spec.weight_bytes + spec.activation_bytes, device.free_bytes()
        if need > 0.9 * free:
            why = f"memory: needs about {need / 2**30:.0f} GiB of {free / 2**30:.0f} free"
            record |= {"status": "not measured", "why": why}
            budget.skip(spec.name, "memory")
            continue
        model, error = budget.piece(f"build {spec.name}", lambda spec=spec: build_model(spec, device.device))
        if error is not None:
            record |= error
            continue
        record["status"] = "measured"
        del record["why"]
        with torch.no_grad():
            for batch in (1, *spec.batches):
                bench = Bench(device, spec, model, batch, wrong, budget, rounds, steps, record["runs"])
                bench.run()
        del model, bench


class Bench:
    """One model at one batch."""

    def __init__(
        self,
        device: Device,
        spec: Spec,
        model: Any,
        batch: int,
        wrong: dict[str, str],
        budget: Budget,
        rounds: int,
        steps: int,
        runs: list[Record],
    ) -> None:
        self.device, self.spec, self.model, self.batch = device, spec, model, batch
        self.wrong, self.budget, self.rounds, self.steps, self.runs = wrong, budget, rounds, steps, runs
        self.marks: list[Any] = []

    def run(self) -> None:
        free, need = self.device.free_bytes(), self.batch * self.spec.activation_bytes
        if need > 0.9 * free:
            self._record("all", None, {"status": "not measured", "why": f"memory: needs about {need / 2**30:.0f} GiB"})
            self.budget.skip(f"{self.spec.name}, batch {self.batch}", "memory")
            return
        made, error = self.budget.piece(
            f"{self.spec.name}, batch {self.batch}, inputs", lambda: prompt(self.spec, self.batch, self.device.device)
        )
        if error is not None:
            self._record("all", None, error)
            return
        self.inputs = made
        retentions = self.spec.retentions if self.batch == 1 else (1 / 9,)
        if self.batch > 1 and 1 / 9 not in self.spec.retentions:
            retentions = self.spec.retentions[-1:]
        self._piece("unpruned", None, lambda: self._alone("unpruned", None))
        if self.batch == 1:
            self._piece("unpruned, graph", None, lambda: self._unpruned_graph())
        # The smallest first: it is the one with targets.
        for retention in sorted(retentions):
            bad = sorted(set(USED) & set(self.wrong))
            if bad:
                refused = {"status": "refused", "why": "wrong: " + ", ".join(bad)}
                self._record("vitcop", retention, refused)
                continue
            self._piece("vitcop", retention, functools.partial(self._pair, retention))
            if self.batch == 1:
                self._piece("vitcop, graph", retention, functools.partial(self._graph, retention))
                self._others(retention)

    # -- one run ------------------------------------------------------------------------------------------------------
    def prefill(self) -> Any:
        return self.model(**self.inputs, use_cache=True, logits_to_keep=1)

    def timed(self) -> tuple[dict[str, float], Any]:
        """Microseconds of one prefill: all of it, and the decoder alone."""
        self.marks = []
        start = self.device.mark()
        out = self.prefill()
        end = self.device.mark()
        self.device.synchronize()
        return {"total": self.device.between(start, end), "decoder": self.device.between(*self.marks)}, out

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        decoder = self.model.model.language_model
        before = decoder.register_forward_pre_hook(lambda *_: self.marks.append(self.device.mark()))
        after = decoder.register_forward_hook(lambda *_: self.marks.append(self.device.mark()))
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def decode(self, out: Any) -> float:
        """Microseconds a token, after a first step that is not counted."""
        cache, mask = out.past_key_values, self.inputs["attention_mask"]
        token = out.logits[:, -1].argmax(-1, keepdim=True)

        def step() -> None:
            nonlocal mask, token
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            logits = self.model(input_ids=token, attention_mask=mask, past_key_values=cache).logits
            token = logits[:, -1].argmax(-1, keepdim=True)

        step()
        start = self.device.mark()
        for _ in range(self.steps):
            step()
        end = self.device.mark()
        return self.device.between(start, end) / self.steps

    def _alone(self, name: str, method: Any) -> Record:
        import vitcop

        context = contextlib.nullcontext if method is None else lambda: vitcop.prune(self.model, method)
        samples: list[dict[str, float]] = []
        with self.watched(), context() as report:
            self.prefill()
            self.device.reset_peak()
            for _ in range(self.rounds):
                found, out = self.timed()
                samples.append(found)
            found = _summary(samples) | {"peak_bytes": self.device.peak_bytes(), "decode_us": self.decode(out)}
            if report is not None:
                found |= _counts(report)
        return found

    def _pair(self, retention: float) -> Record:
        """ViTCoP, the same counts from precomputed indices, and no pruning, in turn, so that drift cancels."""
        import vitcop
        from vitcop.methods.replay import Replay

        method = methods(retention)["vitcop"]
        with vitcop.prune(self.model, method) as report:
            chosen = self.prefill().logits
        ways: dict[str, Callable[[], Any]] = {
            "vitcop": lambda: vitcop.prune(self.model, method),
            "free": lambda: vitcop.prune(self.model, Replay(report)),
            "unpruned": contextlib.nullcontext,
        }
        with ways["free"]():
            if not torch.equal(chosen, self.prefill().logits):
                raise AssertionError("precomputed indices give other logits than chosen ones")
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        selection, more = [], {}
        for round_ in range(self.rounds):
            for name in list(ways)[:: 1 if round_ % 2 else -1]:
                with self.watched(), ways[name]() as active:
                    self.device.reset_peak()
                    found, out = self.timed()
                    samples[name].append(found)
                    if name != "vitcop":
                        continue
                    selection.append(active.selection_seconds * 1e6)
                    if round_ == self.rounds - 1:
                        more = {"peak_bytes": self.device.peak_bytes(), "decode_us": self.decode(out)}

        def ratio(a: str, b: str, what: str) -> float:
            return statistics.median(x[what] / y[what] for x, y in zip(samples[a], samples[b], strict=True))

        ratios = {
            "over_free": ratio("vitcop", "free", "total"),
            "over_unpruned": ratio("vitcop", "unpruned", "total"),
            "decoder_over_unpruned": ratio("vitcop", "unpruned", "decoder"),
        }
        sides = {name: _summary(samples[name]) for name in ("free", "unpruned")}
        chosen_in = {"selection_us": selection, "selection": quantiles(selection)}
        return {**_summary(samples["vitcop"]), **more, **_counts(report), **chosen_in, **sides, **ratios}

    def _graph(self, retention: float) -> Record:
        import vitcop

        if "cuda_graph" not in inspect.signature(vitcop.prune).parameters:
            return {"status": "not available", "why": "vitcop.prune has no cuda_graph"}
        method = methods(retention)["vitcop"]
        # Our hooks first: a graph is captured anew where hooks have come or gone.
        with self.watched(), vitcop.prune(self.model, method, cuda_graph=True) as report:
            for _ in range(3):  # the first one captures
                self.prefill()
            samples = [self.timed()[0] for _ in range(self.rounds)]
            eager = [note for note in report.notes if note.startswith("cuda_graph") and "eagerly" in note]
        if eager:
            return {"status": "not captured", "why": eager[0]}
        return _summary(samples)

    def _unpruned_graph(self) -> Record:
        """transformers' own forward, captured as it is where it can be."""
        embeds: list[Tensor] = []
        decoder = self.model.model.language_model
        hook = decoder.register_forward_pre_hook(
            lambda _, args, kwargs: embeds.append(kwargs["inputs_embeds"]), with_kwargs=True
        )
        self.prefill()
        hook.remove()
        given, places = embeds[0], torch.arange(embeds[0].shape[1], device=self.device.device)[None]

        def unmasked(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
            if kwargs.get("attention_mask") is not None:
                raise AssertionError("the unpruned layers were given a mask, which makes their attention slower")

        def forward() -> Tensor:
            # Without a cache transformers would look for packed sequences, which it cannot in a capture.
            return decoder(inputs_embeds=given, position_ids=places, use_cache=True).last_hidden_state

        hooks = [layer.register_forward_pre_hook(unmasked, with_kwargs=True) for layer in decoder.layers]
        # The mask would be causal alone, which attention does without one. In a capture some versions of transformers
        # make it all the same, of [n, n].
        no_mask = mock.patch.object(sys.modules[type(decoder).__module__], "create_causal_mask", lambda *_, **__: None)
        try:
            with no_mask:
                replay, _ = self.device.capture(forward)
        finally:
            for hook in hooks:
                hook.remove()
        return {
            "decoder": _quantiles([self.device.time(replay) for _ in range(self.rounds)]),
            "note": "the decoder's layers alone",
        }

    def _others(self, retention: float) -> None:
        for name, method in methods(retention).items():
            if name == "vitcop":
                continue
            if isinstance(method, tuple):
                method = method[1](retain=max(1, round(retention * self.spec.visual)))
            if isinstance(method, str):
                self._record(name, retention, {"status": "not available", "why": method})
            else:
                self._piece(name, retention, functools.partial(self._alone, name, method))

    def _piece(self, way: str, retention: float | None, run: Callable[[], Record]) -> None:
        what = f"{self.spec.name}, batch {self.batch}, {way}" + ("" if retention is None else f" at {retention:.4f}")
        found, error = self.budget.piece(what, run)
        # FastV keeps all tokens in its first layers; not every method can do with what every adapter offers.
        if error is not None and error["why"].startswith(("ValueError: infeasible budget", "NotImplementedError")):
            error = {"status": "not available", "why": error["why"]}
        elif error is not None and error["why"].startswith("OutOfMemoryError"):
            error = {"status": "not measured", "why": f"memory: {error['why']}"}
            self.budget.skip(what, "memory")
        self._record(way, retention, {"status": "measured"} | found if error is None else error)

    def _record(self, way: str, retention: float | None, found: Record) -> None:
        self.runs.append({"way": way, "retention": retention, "batch": self.batch} | found)


def _quantiles(us: list[float]) -> dict[str, Any]:
    return {"us": us, **quantiles(us)}


def _summary(samples: list[dict[str, float]]) -> Record:
    return {name: _quantiles([s[name] for s in samples]) for name in samples[0]}


def _counts(report: Any) -> Record:
    return {
        "kept": [stage.tokens_out[0] for stage in report.stages],
        "visual_tokens": report.visual_tokens[0],
        "mean_tokens": report.mean_tokens,
        "kv_bytes": report.kv_bytes,
        "kv_bytes_unpruned": report.kv_bytes_unpruned,
    }
