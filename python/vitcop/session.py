"""Join a model and a method: hooks in, hooks out."""

import contextlib
import dataclasses
import functools
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .engine import cache as caches
from .engine.decoding import DecodingStep
from .engine.hooks import Current, PerThread, untraced
from .engine.layout import Layout, Layouts, Prompt, read_prompt
from .engine.masks import mask_kind
from .engine.memory import PeakWatch
from .engine.report import Report
from .engine.run import Run
from .methods.base import Method

if TYPE_CHECKING:
    from .adapters.base import Removable
    from .engine.capture import Backend
    from .engine.graph import PrefillGraphs
    from .engine.packing import Packing
    from .engine.vision import VisualTokens

BUDGET_PER = ("sample", "image")
_PRUNED: "weakref.WeakKeyDictionary[nn.Module, weakref.ref[Handle]]" = weakref.WeakKeyDictionary()
_ATTACHING = threading.Lock()


def prune(
    model: nn.Module, method: Method, *, cuda_graph: bool = False, budget_per: str = "sample"
) -> contextlib.AbstractContextManager[Report]:
    """Prune visual tokens in every forward of `model` within the block; the model is as before when it ends.

    Outputs keep the prompt's coordinates: logits and every one of `hidden_states` are as long as the input, 0 where a
    token is gone (of `hidden_states`, the first is the input of layer 0 after Stage I): a label that follows a pruned
    token adds a constant to the loss. `attentions` are as computed. Assisted decoding and prompt lookup put their first
    candidates into the prefill: what ranks by the attention of the last token then asks the last candidate.

    `cuda_graph=True` replays prefills from CUDA graphs, `budget_per="image"` gives every image of a prompt a budget of
    its own, see `attach`.

    Gives the report of the latest prefill with visual tokens. Entering raises as `attach` does, and may be repeated,
    but not while the model is being pruned.
    """
    return _Pruning(lambda: attach(model, method, cuda_graph=cuda_graph, budget_per=budget_per))


class _Pruning(contextlib.AbstractContextManager[Report], contextlib.ContextDecorator):
    """Attaches on entry, removes on exit."""

    def __init__(self, begin: "Callable[[], Handle]") -> None:
        self._begin = begin
        self._handle: Handle | None = None

    def __enter__(self) -> Report:
        self._handle = handle = self._begin()  # raises where this one is entered already, and leaves that
        return handle.report

    def __exit__(self, *_: Any) -> None:
        handle, self._handle = self._handle, None
        assert handle is not None
        try:
            handle.remove()
        except BaseException:  # interrupted: finish before going on
            handle.remove()
            raise


def attach(model: nn.Module, method: Method, *, cuda_graph: bool = False, budget_per: str = "sample") -> "Handle":
    """Prune visual tokens in every forward of `model` until `handle.remove()`.

    An exception in a forward, an interrupt included, leaves the handle attached and ready for the next forward. Threads
    may run the model at the same time; the report is then of the prefill that ended last. Meanwhile the model can be
    neither copied nor pickled (TypeError), as its copy would share the hooks; its `state_dict` is as ever. A cache that
    was filled under pruning can be continued only under pruning (RuntimeError).

    Args:
        cuda_graph: run the decoder of a prefill with visual tokens as one CUDA graph instead of launching its kernels
            one by one from Python, which at batch 1 takes longer than the layers compute (docs/results.md, on an H200).

            The first prompt of a kind (batch size, length rounded up to a multiple of 64, visual tokens, images, dtype)
            captures the graph: three more passes of the decoder and a wait for the device. Prompts of that kind are
            then copied in, replayed, and what they keep is copied out. Up to 8 kinds are kept, the one unused for
            longest goes first; each holds the pruned KV cache of its bucket, the embeddings and visual features put
            in, and the hidden states given out, besides the working memory of one prefill, which all share. On a
            LLaVA-1.5 7B in half precision that cache is 0.5 MiB per token and bucket. `remove()` frees everything.

            The answer is that of the eager prefill, up to the rounding of matrix products of other shapes. Prefills
            run eagerly, and the report's notes say why, without a GPU or when weights are spread over devices, in
            training mode, with gradients or autocast, without a KV cache or with one that holds earlier turns or is
            no plain DynamicCache, with padding or samples of different numbers of visual tokens in a batch, when
            hidden states or attentions are asked for, and where the capture fails. Decoding steps are not captured.

            Python runs while capturing alone: hooks on the decoder's modules do not fire in replays, and the times
            of stages are NaN. Weights may change in place; moved weights, and hooks added to or taken from decoder
            layers, are noticed and captured again; after any other change of the decoder (an adapter switched on, a
            module exchanged), attach again.
        budget_per: what a method's counts are for. "sample": all images and videos of a prompt share its budget, and
            compete for it. "image": each keeps its own share, ViTCoP `floor(m_i*pi)` of its m_i tokens at each stage;
            its clusters, means, elites and ranks are its own, `retain` counts for each, and what a method does with the
            last image's end (SparseVLM's means) it does at each one's. Attention is still over the whole prompt, and
            position ids count the whole prompt. An image is what was given as one, whatever it was cut into: with all
            its tiles, a video with all its frames. InternVL does not say which tiles are of one picture: those with no
            token between their placeholders are, so that a frame of its videos counts as an image. Prompts
            with several images are not captured in CUDA graphs then.

    Raises:
        NotImplementedError: a model without an adapter, or configured in a way that cannot be pruned.
        ValueError: a budget that cannot be, an unknown `budget_per`, or a model that is being pruned already.
    """
    if budget_per not in BUDGET_PER:
        raise ValueError(f"budget_per: expected one of {', '.join(map(repr, BUDGET_PER))}, got {budget_per!r}")
    backend = None
    if cuda_graph:
        from .engine.capture import CudaGraphs

        backend = CudaGraphs()
    return Handle(model, method, backend, budget_per)


def detach(model: nn.Module) -> None:
    """Remove the pruning of a model whose handle is lost, as in a notebook. Does nothing where there is none."""
    for module in model.modules():
        found = _PRUNED.get(module)
        handle = None if found is None else found()
        if handle is not None:
            handle.remove()


class _Forward(Current):
    """What a thread's forward in progress has come to."""

    run: Run | DecodingStep | None = None
    prompt: "Prompt | None" = None
    packing: "Packing | None" = None


class Handle:
    """A model under pruning. `backend` captures and replays prefills; None: they run eagerly.

    Its hooks are on the vision tower, on the model that merges images and text, and on the decoder. Calls of decoder
    layers are seen only in forwards that need it: not in those of text alone, and in no decoding step, unless layers
    need masks of their own.
    """

    def __init__(
        self, model: nn.Module, method: Method, backend: "Backend | None" = None, budget_per: str = "sample"
    ) -> None:
        from .adapters import adapter_for

        self.adapter = adapter_for(model)
        self.method, self.budget_per = method, budget_per
        mask_kind(self.adapter.decoder.config._attn_implementation)
        program = self.adapter.fit(method.program(self.adapter.shape.num_layers))
        self.program = dataclasses.replace(program, counts=functools.cache(program.counts))
        self.report = Report(
            notes=list(self.program.notes), decoder=self.adapter.shape, positions=self.program.positions
        )
        self._layouts = Layouts(self.program, budget_per)
        self._tokens: PerThread[VisualTokens] = PerThread()  # of the forward in progress
        self._now = _Forward({})
        self._attached = caches.Attached()
        self._graphs: PrefillGraphs | None = None
        self._hooks: list[Removable] = []
        self._runs: set[Run] = set()  # of all threads, in progress
        self._nothing: dict[Any, Tensor] = {}  # masks of eager attention that hide nothing
        with _ATTACHING:
            if self.adapter.owner in _PRUNED:
                raise ValueError(
                    "This model already has a pruning method attached; leave its `with` block or call "
                    "`handle.remove()` first."
                )
            try:
                self._install()
                if backend is not None:
                    from .engine import graph

                    self._graphs = graph.PrefillGraphs(self.adapter, self.program, backend, self._now)
                    self._graphs.install(self.report)
                _PRUNED[self.adapter.owner] = weakref.ref(self)
            except BaseException:
                self.remove()
                raise

    def remove(self) -> None:
        """Take all hooks out. The report stays; calling it again does nothing, or finishes what was interrupted."""
        self._attached.on = False
        self._forget()
        for run in list(self._runs):
            run.cancel()
        if self._graphs is not None:
            self._graphs.close()
            self._graphs = None
        while self._hooks:  # the last one in is the first one out
            self._hooks[-1].remove()
            if len(self._hooks) == 1:
                _PRUNED.pop(self.adapter.owner, None)
            self._hooks.pop()

    def _install(self) -> None:
        owner, decoder, add = self.adapter.owner, self.adapter.decoder, self._hooks.append
        for hook in self.adapter.watch(self._tokens):
            add(hook)
        add(owner.register_forward_pre_hook(untraced(self._before_model), with_kwargs=True))
        add(owner.register_forward_hook(untraced(self._after_model), always_call=True))
        add(decoder.register_forward_pre_hook(untraced(self._before_decoder), with_kwargs=True))
        add(decoder.register_forward_hook(untraced(self._after_decoder), always_call=True))

    def _end_run(self) -> None:
        run, self._now.run, self._now.packing = self._now.run, None, None
        if run is not None:
            self._runs.discard(run)
            run.end()

    def _forget(self) -> None:
        self._end_run()
        self._now.prompt = None
        self._tokens.clear()

    # -- the model that merges images and text -----------------------------------------------------------------------

    def _before_model(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Refuse what cannot be done, and read the layout of the prompt, before anything has changed."""
        if not args and _is_step(kwargs):
            return
        if getattr(module, "_is_replica", False):
            raise NotImplementedError(
                "DataParallel: the replicas of a model cannot be pruned, as the hooks are for the original; use "
                "DistributedDataParallel with one process a device, or one device"
            )
        self._forget()
        arguments = self.adapter.arguments(args, kwargs)
        ids, mask, cache = arguments.get("input_ids"), arguments.get("attention_mask"), caches.given(arguments)
        caches.check_cache(cache)
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
            what = f"{mask.dim()} dimensions" if isinstance(mask, Tensor) else type(mask).__name__
            raise NotImplementedError(f"attention_mask: expected a padding mask [batch, length], got {what}")
        visual, encoded = self.adapter.given(arguments)
        if ids is None:
            embeds = arguments.get("inputs_embeds")
            if embeds is None or not visual:  # text, or images that the caller has put in: nothing to prune
                return
            ids = self.adapter.ids_of(embeds)
        # Not read: decoding steps, and candidates of assisted decoding, which may quote the prompt's placeholders.
        if visual or (ids.shape[1] > 1 and caches.seen(cache) == 0):
            positions = caches.text_ids(arguments.get("position_ids"))
            uncached = cache is None and arguments.get("use_cache") is False
            prompt = read_prompt(ids, self.adapter.visual_ids, mask, positions, cached=not uncached)
            if visual != any(prompt.counts):
                found = (
                    "none in input_ids"
                    if visual
                    else f"{sum(prompt.counts)} in input_ids but no images (an assistant "
                    "model is given none: prune the model that it assists)"
                )
                raise ValueError(f"input_ids: expected visual tokens exactly where images are given, got {found}")
            if visual:
                if self.budget_per == "sample":  # the images' sizes are not known yet
                    for total in sorted(set(prompt.counts) - {0}):
                        self.program.counts(total)  # raises ValueError where it is infeasible
                self._now.prompt = prompt
        self._tokens.extend(encoded)

    def _after_model(self, *_: Any) -> None:
        now = self._now
        if now.prompt is not None or now.run is not None or self._tokens:
            self._forget()

    # -- the decoder -------------------------------------------------------------------------------------------------

    def _before_decoder(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        cache, embeds = caches.given(kwargs), kwargs.get("inputs_embeds")
        if embeds is None:
            return None
        prompt, before = self._now.prompt, caches.is_pruned(cache)
        if before:
            cache.layers[0].pruned.attached = self._attached  # which may be another block than filled it
        if prompt is None or not self._tokens:
            return self._go_on(module, args, kwargs, cache, embeds) if before else None
        self._end_run()
        if module.training and getattr(module, "gradient_checkpointing", False) and _hooks_run_again():
            raise NotImplementedError(
                "gradient checkpointing: expected transformers 5 or newer, whose backward does not repeat the hooks"
            )
        tokens = list(self._tokens)
        packing = None
        if prompt.starts is not None:
            from .engine.packing import Packing

            packing = Packing(prompt, embeds.device)
            prompt = packing.prompt
            kwargs = packing.arguments(kwargs)
            embeds = kwargs["inputs_embeds"]
        elif "cu_seq_lens_q" in kwargs:
            from .engine.packing import without_lengths

            kwargs = without_lengths(kwargs)
        layout = self._layouts.get(prompt, tokens, embeds.device)
        run = self._run(kwargs, cache, embeds, prompt, layout, tokens)
        features, kwargs = self.adapter.take_injections(kwargs)
        if features:
            from .engine.injection import Injection

            run.injection = Injection(features, prompt.visual, embeds.device)
        run.peak_watch = PeakWatch(embeds.device)
        run.first = [] if kwargs.get("output_hidden_states") else None
        return args, self._start(run, kwargs, packing)

    def _go_on(self, module: nn.Module, args: Any, kwargs: Any, cache: Any, embeds: Tensor) -> Any:
        """A forward after a pruned prefill: its layers need masks of their own, unless it is a step without padding."""
        if self._now.run is not None:  # it was interrupted
            self._end_run()
        state = cache.layers[0].pruned
        implementation = self.adapter.decoder.config._attn_implementation
        if embeds.shape[1] == 1 and state.shift is None and not state.padded and implementation != "eager":
            return None
        kind = mask_kind(implementation)
        if embeds.shape[1] > 1 or (state.padded and (kind == "flash" or torch.is_grad_enabled())):
            run = self._run(kwargs, cache, embeds, None, None, [])
            return args, self._start(run, kwargs)
        if state.shift is not None:
            ids = self.adapter.text_positions(kwargs.get("position_ids"))
            if ids is None:
                ids = torch.full((1, 1), caches.seen(cache), device=embeds.device)
            kwargs = {**kwargs, "position_ids": ids - state.shift}
        if state.padded:
            self._now.run = step = DecodingStep(kind, embeds, self._now)
            return args, {**kwargs, "attention_mask": step.start(self.adapter.decoder, cache)}
        if kind == "eager":
            key = embeds.dtype, embeds.device
            if key not in self._nothing:
                self._nothing[key] = torch.zeros(1, 1, 1, 1, dtype=embeds.dtype, device=embeds.device)
            kwargs = {**kwargs, "attention_mask": self._nothing[key]}
        return args, kwargs

    def _run(
        self, kwargs: Any, cache: Any, embeds: Tensor, prompt: "Prompt | None", layout: "Layout | None", tokens: Any
    ) -> Run:
        mask, ids = kwargs.get("attention_mask"), self.adapter.text_positions(kwargs.get("position_ids"))
        return Run(
            self.adapter, self.program, embeds, cache, mask, ids, prompt, layout, tokens, self._attached, self._now
        )

    def _start(self, run: Run, kwargs: Any, packing: "Packing | None" = None) -> Any:
        """Let a run see the layers from here to the end of the decoder's forward."""
        self._now.run, self._now.packing = run, packing
        self._runs.add(run)
        run.watch_layers()
        ids = run.positions()
        return kwargs if ids is None else {**kwargs, "position_ids": ids}

    def _after_decoder(self, module: nn.Module, args: Any, output: Any) -> Any:
        run, packing = self._now.run, self._now.packing
        if run is None:
            return None
        self._end_run()
        if output is None or not isinstance(
            run, Run
        ):  # an exception is on its way, or a step of a padded batch is done
            return None
        if run.groups:
            self._take(run, output[0])
        if not (run.prunes or run.before or packing is not None):
            return None
        if run.unseen:
            raise RuntimeError(
                "Code compiled before the pruning has skipped its stages; call torch.compiler.reset() after attaching."
            )
        hidden = run.finish(output[0])
        collected = None if isinstance(output, tuple) else output.get("hidden_states")
        if collected:
            collected = run.hidden_states(collected)
        if packing is not None:
            hidden = packing.packed(hidden)
            collected = collected and tuple(h if h is None else packing.packed(h) for h in collected)
        if isinstance(output, tuple):
            return (hidden, *output[1:])
        output["last_hidden_state"] = hidden
        if collected:
            output["hidden_states"] = collected
        return output

    def _take(self, run: Run, hidden: Tensor) -> None:
        """Show a prefill that has come to its end."""
        assert run.prompt is not None
        run.finish_report()
        lengths, counts = run.prompt.lengths, run.prompt.counts
        text = [n - v for n, v in zip(lengths, counts, strict=True)]
        self.report.take(run.stages, counts, text, self.program.kept_whole)
        self.report.columns = run.columns(hidden.element_size())
        measured = None if run.peak_watch is None else run.peak_watch.stop()
        self.report.peak_bytes, self.report.peak_bytes_before = (None, None) if measured is None else measured


def _is_step(kwargs: Any) -> bool:
    """One token each, after what a cache holds, and no images."""
    ids = kwargs.get("input_ids")
    if ids is None or ids.shape[1] != 1:
        return False
    given = kwargs.get
    if not (given("pixel_values") is given("pixel_values_videos") is given("mm_encoder_outputs") is None):
        return False
    return caches.seen(caches.given(kwargs)) > 0


def _hooks_run_again() -> bool:
    """Whether gradient checkpointing repeats a layer's hooks: up to 4.57 it wraps `__call__`, later `forward`."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return "__call__" in vars(GradientCheckpointingLayer)
