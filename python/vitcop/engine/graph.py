"""A pruned prefill as one CUDA graph per bucket of prompt lengths.

After pruning, a layer computes for less time than Python needs to launch it. Budgets are static, so nothing about a
prefill depends on what is in the prompt except its length: the text is padded on the right up to a bucket, which
causal attention keeps from every token before it, and cut off again afterwards. What the graph reads is copied into
tensors of its own before each replay; what a request keeps (keys, values, hidden states, the report) is copied out.
"""

import contextlib
import dataclasses
import functools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitcop.adapters.base import Adapter
from vitcop.methods.base import Program

from . import cache as caches
from .capture import Backend
from .hooks import Current
from .layout import Group, Layout
from .report import Report
from .run import Run, Segment
from .vision import VisualTokens

BUCKET = 64
"""Prompt lengths are rounded up to multiples of this."""
MAX_GRAPHS = 8
"""Graphs kept at a time; the one that was not used for longest goes first."""
WARM_UPS = 2
"""Runs before a capture: kernels are compiled, libraries take their workspaces."""

_KNOWN = {
    "inputs_embeds", "position_ids", "attention_mask", "past_key_values", "cache", "use_cache", "cache_position",
    "logits_to_keep",  # passed on by some models, looked at by no decoder
}  # fmt: skip


class NotCaptured(Exception):
    """Why a prefill runs eagerly."""


class StaticTokens:
    """The vision side at fixed addresses. Holds what the stages asked for while the graph was prepared."""

    def __init__(self, tokens: Sequence[VisualTokens], device: torch.device) -> None:
        self._tokens: Sequence[VisualTokens] | None = tokens
        self._device = device
        self._plain: dict[str, Any] = {"image_tokens": [n for run in tokens for n in run.image_tokens]}
        self._held: dict[str, Tensor | None] = {}

    def __getattr__(self, name: str) -> Any:
        if name in self._plain:
            return self._plain[name]
        if name not in self._held:
            if self._tokens is None:
                raise RuntimeError(f"{name}: expected a stage to ask for it in every run, got it asked for once")
            value = getattr(self._tokens[0], name)
            if not callable(value):
                return self._plain.setdefault(name, value)
            joined = _joined(self._tokens, name)
            self._held[name] = None if joined is None else joined.to(self._device).clone()
        return functools.partial(self._held.get, name)

    def _freeze(self) -> None:
        self._tokens = None

    def _load(self, tokens: Sequence[VisualTokens]) -> None:
        new = {name: _joined(tokens, name) for name in self._held}
        for name, held in self._held.items():
            if _kind(new[name]) != _kind(held):
                raise NotCaptured(f"{name} of the visual tokens has another shape or dtype than when it was captured")
        for name, held in self._held.items():
            if held is not None:
                held.copy_(new[name], non_blocking=True)  # type: ignore[arg-type]


def _kind(tensor: Tensor | None) -> Any:
    return tensor if tensor is None else (tensor.shape, tensor.dtype)


def _joined(tokens: Sequence[VisualTokens], name: str) -> Tensor | None:
    parts = [getattr(run, name)() for run in tokens]
    return None if any(part is None for part in parts) else torch.cat(parts)


@dataclass
class Inputs:
    """What a graph reads. n: slots of the bucket."""

    embeds: Tensor  # [B, n, C]
    position_ids: Tensor  # [..., B or 1, n] as the decoder takes them
    behind: Tensor  # [1] slots of padding behind the text
    group: Group
    tokens: StaticTokens
    layout: Layout  # its own group aside, the same for all prompts of a kind

    @classmethod
    def like(cls, run: Run, embeds: Tensor, position_ids: Tensor, slots: int) -> "Inputs":
        batch, device = run.batch, embeds.device
        (group,) = run.groups
        assert run.layout is not None
        own: dict[str, Any] = {name: torch.empty_like(tensor) for name, tensor in _tensors(group).items()}
        return cls(
            embeds.new_zeros(batch, slots, embeds.shape[2]),
            position_ids.new_zeros(*position_ids.shape[:-1], slots),
            torch.zeros(1, dtype=torch.int64, device=device),
            dataclasses.replace(group, **own),
            StaticTokens(run.tokens, device),
            run.layout,
        )

    def load(self, run: Run, embeds: Tensor, position_ids: Tensor) -> None:
        """Copy a request in. Whatever stands behind its text is finite, and seen by nobody."""
        length = embeds.shape[1]
        self.tokens._load(run.tokens)
        self.embeds[:, :length].copy_(embeds)
        self.embeds[:, length:].zero_()
        self.position_ids[..., :length].copy_(position_ids)
        self.position_ids[..., length:].copy_(position_ids[..., -1:])
        self.behind.fill_(self.embeds.shape[1] - length)
        (group,) = run.groups
        for name, tensor in _tensors(group).items():
            getattr(self.group, name).copy_(tensor, non_blocking=True)


@dataclass
class Outcome:
    """What a run of the decoder leaves: in a graph, rewritten by each replay."""

    run: Run
    cache: Any
    output: Any


@dataclass
class Captured:
    graph: Any
    inputs: Inputs
    outcome: Outcome


class PrefillGraphs:
    """Stands in for the forward of a decoder: replays a graph where it can, and is the decoder's own forward elsewhere.

    Args:
        current: the run that a thread's decoder is in.
    """

    def __init__(self, adapter: Adapter, program: Program, backend: Backend, current: Current) -> None:
        self.adapter, self.program, self.backend, self._current = adapter, program, backend, current
        self.decoder: Any = adapter.decoder
        self.graphs: OrderedDict[Any, Captured] = OrderedDict()
        self._failed: OrderedDict[Any, str] = OrderedDict()  # why a capture was given up
        self._model: tuple[list[Tensor], list[int], int] | None = None
        self._had_own = "forward" in vars(self.decoder)
        self._forward = self.decoder.forward
        self._installed: Any = None
        self._lock = threading.Lock()  # the graphs' memory is for one prefill at a time

    def install(self, report: Report) -> None:
        """Take the place of `decoder.forward`."""

        @functools.wraps(self._forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            run = self._current.run
            if run is None or not run.groups:
                return self._forward(*args, **kwargs)
            report.notes[:] = [note for note in report.notes if not note.startswith("cuda_graph")]
            try:
                output, slots = self._replay(run, args, kwargs)
                run.peak_watch = None
                report.notes.append(f"cuda_graph: replayed for up to {slots} tokens")
                return output
            except NotCaptured as reason:
                why = str(reason)
            # Outside: while it is handled, the error keeps what a failed capture has allocated.
            report.notes.append(f"cuda_graph: this prefill ran eagerly ({why})")
            return self._forward(*args, **kwargs)

        self._installed = self.decoder.forward = forward

    def close(self) -> None:
        """Give the decoder its forward back, and all memory."""
        if self._installed is not None and vars(self.decoder).get("forward") is self._installed:
            if self._had_own:
                self.decoder.forward = self._forward
            else:
                del self.decoder.forward
        self._drop_all()

    def _drop_all(self) -> None:
        self.backend.release([captured.graph for captured in self.graphs.values()])
        self.graphs.clear()
        self._failed.clear()
        self._model = None

    # -- one prefill -------------------------------------------------------------------------------------------------

    def _replay(self, run: Run, args: Any, kwargs: dict[str, Any]) -> tuple[Any, int]:
        self._check(run, args, kwargs)
        embeds: Tensor = kwargs["inputs_embeds"].detach()
        self._check_model(embeds.device)
        slots = -(-embeds.shape[1] // BUCKET) * BUCKET
        position_ids = kwargs.get("position_ids")
        if position_ids is None:
            position_ids = torch.arange(run.queries, device=run.device)[None]
        key = slots, tuple(position_ids.shape[:-1]), *self._key(run, embeds)
        if key in self._failed:
            raise NotCaptured(self._failed[key])
        on_device = torch.cuda.device(embeds.device) if embeds.is_cuda else contextlib.nullcontext()
        with self._lock, on_device, torch.no_grad(), self.backend.replaying():
            captured = self.graphs.get(key) or self._capture(key, run, embeds, position_ids, slots)
            self.graphs.move_to_end(key)
            captured.inputs.load(run, embeds, position_ids)
            self.backend.replay(captured.graph)
            return self._copy_out(captured.outcome, run, caches.given(kwargs), slots), slots

    def _check(self, run: Run, args: Any, kwargs: dict[str, Any]) -> None:
        """Raise where a graph would not do what the decoder does."""
        config, use_cache = self.decoder.config, kwargs.get("use_cache")
        unknown = sorted(n for n, v in kwargs.items() if n not in _KNOWN and v is not None and v is not False)
        unknown = [n for n in unknown if not (n == "return_dict" and kwargs[n])]
        asked = any(getattr(config, f"output_{name}", False) for name in ("hidden_states", "attentions"))
        if args or unknown:
            raise NotCaptured(f"argument {unknown[0]}" if unknown else "positional arguments")
        if not self.backend.takes(run.device):
            raise NotCaptured(f"the decoder is on {run.device}, not on a CUDA device")
        if any(module.training for module in (self.decoder, *self.decoder.layers)):
            raise NotCaptured("training mode")
        if torch.is_grad_enabled():
            raise NotCaptured("gradients are enabled; use torch.no_grad() or torch.inference_mode()")
        if torch.is_autocast_enabled(run.device.type):
            raise NotCaptured("autocast keeps casts of the weights from one forward to the next")
        if not (getattr(config, "use_cache", False) if use_cache is None else use_cache):
            raise NotCaptured("use_cache=False")
        if asked:
            raise NotCaptured("hidden states or attentions are wanted")
        if run.before or run.seen or not _is_plain(run.cache):
            raise NotCaptured("the cache holds earlier turns, or is no plain DynamicCache")
        if run.sequence.valid is not None:
            raise NotCaptured("padding")
        if run.per_image is not None:
            raise NotCaptured("several images with budgets of their own")
        if len(run.groups) > 1 or run.groups[0].rows is not None:
            raise NotCaptured("samples with different numbers of visual tokens")
        if run.injection is not None:
            raise NotCaptured("vision features are added inside the decoder")
        if not run.prunes:
            raise NotCaptured("nothing to prune")

    def _check_model(self, device: torch.device) -> None:
        """Graphs hold the addresses of weights, and do not call hooks: start again where either has changed."""
        if self._model is not None:
            tensors, addresses, hooks = self._model
            if addresses == _addresses(tensors) and hooks == _count_hooks(self.decoder):
                return
            self._drop_all()
        elsewhere = next((weight.device for weight in self.decoder.parameters() if weight.device != device), None)
        if elsewhere is not None:
            raise NotCaptured(f"weights are on {elsewhere} and the prompt on {device}")
        owner = self.adapter.owner  # methods may call the projector
        tensors = [*owner.parameters(), *owner.buffers()]
        self._model = tensors, _addresses(tensors), _count_hooks(self.decoder)

    def _key(self, run: Run, embeds: Tensor) -> tuple[Any, ...]:
        (group,) = run.groups
        layout = [
            (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else repr(value)
            for value in (getattr(group, field.name) for field in dataclasses.fields(group))
        ]
        images = sum(sum(tokens.image_tokens) for tokens in run.tokens)
        implementation = self.decoder.config._attn_implementation
        return run.batch, embeds.dtype, embeds.device, implementation, images, *layout

    # -- the first of a bucket ---------------------------------------------------------------------------------------

    def _capture(self, key: Any, run: Run, embeds: Tensor, position_ids: Tensor, slots: int) -> Captured:
        if len(self.graphs) >= MAX_GRAPHS:
            _, oldest = self.graphs.popitem(last=False)
            self.backend.release([oldest.graph])
            del oldest  # its memory may serve the next
        try:
            with torch.inference_mode(False), torch.no_grad():
                inputs = Inputs.like(run, embeds, position_ids, slots)
                inputs.load(run, embeds, position_ids)
                work = functools.partial(self._run_decoder, inputs)
                for _ in range(WARM_UPS):
                    self.backend.warm_up(work)
                inputs.tokens._freeze()
                graph, outcome = self.backend.capture(work)
        except Exception as error:
            # The eager prefill that follows raises again what was not about capturing.
            self._failed[key] = f"capture failed with {type(error).__name__}: {error}"
            if len(self._failed) > MAX_GRAPHS:
                self._failed.popitem(last=False)
            raise NotCaptured(self._failed[key]) from error
        self.graphs[key] = captured = Captured(graph, inputs, outcome)
        return captured

    def _run_decoder(self, inputs: Inputs) -> Outcome:
        from transformers import DynamicCache

        cache = DynamicCache(config=self.decoder.config)
        tokens: Any = [inputs.tokens]
        position_ids = self.adapter.text_positions(inputs.position_ids)
        layout = dataclasses.replace(inputs.layout, groups=[inputs.group])
        run = Run(
            self.adapter, self.program, inputs.embeds, cache, None, position_ids, None, layout, tokens,
            caches.Attached(), self._current,
        )  # fmt: skip
        run.static(inputs.behind)
        with self._standing_in(run):
            output = self._forward(
                inputs_embeds=inputs.embeds, use_cache=True,
                position_ids=inputs.position_ids,
                **{caches.name_for(self.decoder): cache},
            )  # fmt: skip
        return Outcome(run, cache, output)

    @contextlib.contextmanager
    def _standing_in(self, run: Run) -> Iterator[None]:
        """Within the decoder's forward: its layers prune for this run, and not for the one that waits for the graph."""
        outer, self._current.run = self._current.run, run
        try:
            run.watch_layers()
            yield
        finally:
            run.end()
            self._current.run = outer

    # -- after a replay ----------------------------------------------------------------------------------------------

    def _copy_out(self, outcome: Outcome, run: Run, cache: Any, slots: int) -> Any:
        """Hand over to `run` what its own pass through the layers would have left there, without the padding."""
        from transformers import DynamicCache

        inner, behind = outcome.run, slots - run.queries
        if cache is None:
            cache = DynamicCache(config=self.decoder.config)
        widths = [segment.width - behind for segment, begin, end in inner.spans() for _ in range(begin, end)]
        for index, (layer, columns) in enumerate(zip(outcome.cache.layers, widths, strict=True)):
            # An empty layer copies what it is given: its first update concatenates.
            cache.update(layer.keys[:, :, :columns], layer.values[:, :, :columns], index)
        run.stages = _cloned(inner.stages)
        run.cache = cache
        run.segments = [Segment(s.layer, s.width - behind, None, None) for s in inner.segments]
        last, source = run.segments[-1], inner.segments[-1].source
        assert source is not None
        last.source = source[:, : last.width].clone()
        hidden = outcome.output.last_hidden_state[:, : last.width].clone()
        return type(outcome.output)(last_hidden_state=hidden, **{caches.name_for(self.decoder): cache})


def _is_plain(cache: Any) -> bool:
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if cache is None:
        return True
    plain = type(cache) is DynamicCache and not getattr(cache, "offloading", False)
    return plain and all(type(layer) is DynamicLayer for layer in cache.layers)


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    try:
        return [tensor.data_ptr() for tensor in tensors]
    except (RuntimeError, NotImplementedError) as error:
        raise NotCaptured("weights that are no plain tensors") from error


def _count_hooks(decoder: Any) -> int:
    modules: list[nn.Module] = [decoder, *decoder.layers]
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


def _tensors(group: Group) -> dict[str, Tensor]:
    values = {field.name: getattr(group, field.name) for field in dataclasses.fields(group)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _cloned(value: Any, memory: dict[int, Any] | None = None) -> Any:
    """Lists, dicts, partials and dataclasses with tensors of their own; what was one object stays one."""
    memory = {} if memory is None else memory
    if id(value) in memory:
        return memory[id(value)]
    new = value
    if isinstance(value, Tensor):
        new = value.clone()
    elif isinstance(value, list):
        new = [_cloned(item, memory) for item in value]
    elif isinstance(value, dict):
        new = {key: _cloned(item, memory) for key, item in value.items()}
    elif isinstance(value, functools.partial):
        arguments = [_cloned(argument, memory) for argument in value.args]
        new = functools.partial(value.func, *arguments, **_cloned(value.keywords, memory))
    elif isinstance(value, tuple):
        new = tuple(_cloned(item, memory) for item in value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _cloned(getattr(value, f.name), memory) for f in dataclasses.fields(value)}
        new = dataclasses.replace(value, **fields)
    memory[id(value)] = new
    return new
