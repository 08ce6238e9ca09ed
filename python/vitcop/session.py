"""Join a model and a method: hooks in, hooks out."""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from . import caches, decoder_keys
from .hooks import PerThread, before_forward, untraced
from .injection import Injection
from .layout import Prompt, group_images, group_samples, read_prompt
from .masks import mask_kind
from .methods.base import Method
from .report import Report

if TYPE_CHECKING:
    from .adapters.base import Removable, VisualTokens
    from .capture import Backend
    from .graph import PrefillGraphs
    from .run import Run

BUDGET_PER = ("sample", "image")
_PRUNED: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()
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
            one by one from Python, which at batch 1 takes longer than the layers compute (README, on an H200).

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
        from .capture import CudaGraphs

        backend = CudaGraphs()
    return Handle(model, method, backend, budget_per)


class _Forward(threading.local):
    """What a thread's forward in progress has come to."""

    prompt: "Prompt | None" = None
    run: "Run | None" = None


class Handle:
    """A model under pruning. `backend` captures and replays prefills; None: they run eagerly."""

    def __init__(
        self, model: nn.Module, method: Method, backend: "Backend | None" = None, budget_per: str = "sample"
    ) -> None:
        from .adapters import adapter_for

        self.adapter = adapter_for(model)
        self.method, self.budget_per = method, budget_per
        mask_kind(self.adapter.decoder.config._attn_implementation)
        self.program = self.adapter.fit(method.program(self.adapter.shape.num_layers))
        self.report = Report(
            notes=list(self.program.notes), decoder=self.adapter.shape, positions=self.program.positions
        )
        self._tokens: PerThread[VisualTokens] = PerThread()  # of the forward in progress
        self._now = _Forward()
        self._attached = caches.Attached()
        self._graphs: PrefillGraphs | None = None
        self._hooks: list[Removable] = []
        with _ATTACHING:
            if self.adapter.owner in _PRUNED:
                raise ValueError("model: expected one that is not being pruned, got one with a method attached")
            try:
                self._install()
                if backend is not None:
                    from . import graph

                    self._graphs = graph.PrefillGraphs(self.adapter, self.program, backend, self._standing_in)
                    self._graphs.install(lambda: self._now.run, self.report)
                _PRUNED.add(self.adapter.owner)
            except BaseException:
                self.remove()
                raise

    def remove(self) -> None:
        """Take all hooks out. The report stays; calling it again does nothing, or finishes what was interrupted."""
        self._attached.on = False
        if self._graphs is not None:
            self._graphs.close()
            self._graphs = None
        while self._hooks:  # the last one in is the first one out
            self._hooks[-1].remove()
            if len(self._hooks) == 1:
                _PRUNED.discard(self.adapter.owner)
            self._hooks.pop()
        self._forget()

    def _install(self) -> None:
        owner, decoder, add = self.adapter.owner, self.adapter.decoder, self._hooks.append
        for hook in self.adapter.watch(self._tokens):
            add(hook)
        add(owner.register_forward_pre_hook(untraced(self._before_model), with_kwargs=True))
        add(owner.register_forward_hook(untraced(self._after_model), always_call=True))
        add(decoder.register_forward_pre_hook(untraced(self._before_decoder), with_kwargs=True))
        add(decoder.register_forward_hook(untraced(self._after_decoder)))
        for index, layer in enumerate(decoder.layers):

            def before_layer(module: nn.Module, args: Any, kwargs: Any, index: int = index) -> Any:
                return self._before_layer(index, module, args, kwargs)

            add(before_forward(decoder_keys.in_fsdp(layer), before_layer))

    def _end_run(self) -> None:
        run, self._now.run = self._now.run, None
        if run is not None:
            run.abandon()

    def _forget(self) -> None:
        self._end_run()
        self._now.prompt = None
        self._tokens.clear()

    # -- the model that merges images and text -----------------------------------------------------------------------

    def _before_model(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Refuse what cannot be done, and read the layout of the prompt, before anything has changed."""
        self._forget()
        arguments = self.adapter.arguments(args, kwargs)
        ids, mask = arguments.get("input_ids"), arguments.get("attention_mask")
        caches.check_cache(caches.given(arguments))
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
        if visual or (ids.shape[1] > 1 and caches.seen(caches.given(arguments)) == 0):
            prompt = read_prompt(ids, self.adapter.visual_ids, mask)
            if visual != any(prompt.counts):
                found = (
                    "none in input_ids"
                    if visual
                    else f"{sum(prompt.counts)} in input_ids but no images (an assistant "
                    "model is given none: prune the model that it assists)"
                )
                raise ValueError(f"input_ids: expected visual tokens exactly where images are given, got {found}")
            if self.budget_per == "sample":  # the images' sizes are not known yet
                self._check_counts(prompt.counts)
            self._now.prompt = prompt
        self._tokens.extend(encoded)

    def _check_counts(self, totals: Iterable[int]) -> None:
        """Raise ValueError where a budget is infeasible."""
        for total in sorted(set(totals) - {0}):
            self.program.counts(total)

    def _after_model(self, *_: Any) -> None:
        self._forget()

    # -- the decoder -------------------------------------------------------------------------------------------------

    def _before_decoder(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        from .memory import PeakWatch
        from .per_image import PerImage
        from .run import Run

        self._end_run()
        cache, embeds = caches.given(kwargs), kwargs.get("inputs_embeds")
        state, prompt, tokens = caches.state_of(cache), self._now.prompt, list(self._tokens)
        if embeds is None or (state is None and (not tokens or prompt is None)):
            return None
        if module.training and getattr(module, "gradient_checkpointing", False) and _hooks_run_again():
            raise NotImplementedError(
                "gradient checkpointing: expected transformers 5 or newer, whose backward does not repeat the hooks"
            )
        groups, per_image = [], None
        if tokens and prompt is not None:
            layout = prompt, tokens, embeds.device
            groups = group_samples(*layout, self.budget_per)
            if any(len(group.images) > 1 for group in groups):
                per_image = PerImage(groups, group_images(*layout, groups))
            self._check_counts(total for group in groups for total in group.images)
        mask, position_ids = kwargs.get("attention_mask"), self.adapter.text_positions(kwargs.get("position_ids"))
        if state is not None:
            state.attached = self._attached
        self._now.run = run = Run(
            self.adapter, self.program, embeds, cache, mask, position_ids, prompt, groups, tokens, per_image
        )
        if groups:
            assert prompt is not None
            features, kwargs = self.adapter.take_injections(kwargs)
            if features:
                run.injection = Injection(features, prompt.visual, embeds.device)
            run.peak_watch = PeakWatch(embeds.device)
            run.first = [] if kwargs.get("output_hidden_states") else None
        if run.shift is not None:
            kwargs = {**kwargs, "position_ids": run.position_ids}
        return args, kwargs

    def _before_layer(self, index: int, module: nn.Module, args: Any, kwargs: Any) -> Any:
        run = self._now.run
        if run is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        changed = run.layer_input(index, module, hidden, kwargs)
        if changed is None:
            return None
        hidden, kwargs = changed
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    @contextlib.contextmanager
    def _standing_in(self, run: "Run") -> Iterator[None]:
        """Within the decoder's forward: its layers prune for another run."""
        outer, self._now.run = self._now.run, run
        try:
            yield
        finally:
            run.abandon()
            self._now.run = outer

    def _after_decoder(self, module: nn.Module, args: Any, output: Any) -> Any:
        run, self._now.run = self._now.run, None
        if run is None:
            return None
        if run.groups:
            assert run.prompt is not None
            lengths, counts = run.prompt.lengths, run.prompt.counts
            self.report.take(run.stages, counts, [n - v for n, v in zip(lengths, counts, strict=True)])
            itemsize = output[0].element_size()
            self.report.take_memory(
                *run.footprints(itemsize), None if run.peak_watch is None else run.peak_watch.stop()
            )
        if not run.dirty:
            return None
        hidden = run.finish(output[0], self._attached)
        if isinstance(output, tuple):
            return (hidden, *output[1:])
        output["last_hidden_state"] = hidden
        if output.get("hidden_states"):
            output["hidden_states"] = run.hidden_states(output["hidden_states"])
        return output


def _hooks_run_again() -> bool:
    """Whether gradient checkpointing repeats a layer's hooks: up to 4.57 it wraps `__call__`, later `forward`."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return "__call__" in vars(GradientCheckpointingLayer)
