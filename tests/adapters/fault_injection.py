"""Raise an exception in the k-th call of anything that pruning has put into a model, or of the model's own modules.

What was put in is found by comparing the model with what it was before, so that nothing can be forgotten.
"""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitcop.engine.hooks import Stands

HOOKS = ("_forward_pre_hooks", "_forward_hooks")
MADE_BY_A_PREFILL = ("rope_deltas",)  # which Qwen's models keep
NEW = 3

Prune = Callable[[nn.Module], AbstractContextManager[Any]]


class Injected(Exception):
    """Nobody else raises this."""


@dataclass(frozen=True)
class Site:
    """Something that is called: `holder[key]` of one module."""

    name: str
    holder: dict[Any, Any]
    key: Any
    original: Any


@dataclass(frozen=True)
class Fault:
    """The call (from 0) of a site, by its name, that raises: before or after it has done its work."""

    site: str
    call: int
    after: bool


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Every module's own attributes, containers by their content, and its hooks by identity and order."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key in MADE_BY_A_PREFILL:
                continue
            if isinstance(value, dict):
                found[f"{name}.{key}"] = [(k, id(v)) for k, v in value.items()]
            else:
                found[f"{name}.{key}"] = id(value)
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    found["configs"] = {key: config.to_dict() for key, config in configs.items()}
    return found


def installed(model: nn.Module, before: dict[str, Any]) -> list[Site]:
    """Every hook, and every callable attribute of a module's own, that is not in a snapshot."""
    found = []
    for name, module in model.named_modules():
        for place in HOOKS:
            old = {key for key, _ in before[f"{name}.{place}"]}
            new = [key for key in getattr(module, place) if key not in old]  # ids count all hooks of the process
            for number, key in enumerate(new):
                holder = getattr(module, place)
                found.append(Site(f"{name}.{place.strip('_')}[{number}]", holder, key, holder[key]))
        for key, value in vars(module).items():
            if callable(value) and before.get(f"{name}.{key}") != id(value):
                found.append(Site(f"{name}.{key}", vars(module), key, value))
    return found


def own(model: nn.Module) -> list[Site]:
    """The forwards of the model's stacked layers (tower and decoder), of their parts, and of what has no parts."""
    chosen = {}
    for name, module in model.named_modules():
        parents = [type(model.get_submodule(name.rsplit(".", up)[0])) for up in (1, 2) if name.count(".") >= up]
        if nn.ModuleList in parents or (not any(module.children()) and ".layers." not in name):
            chosen[name] = module
    return [Site(f"{name}.forward", vars(m), "forward", m.forward) for name, m in sorted(chosen.items())]


class Injector:
    """Stands in for sites, counts their calls, and raises where it is told to."""

    def __init__(self, sites: list[Site], model: nn.Module | None = None) -> None:
        """`model`: calls that single forwards see are sites as well."""
        self.calls = dict.fromkeys((site.name for site in sites), 0)
        self.seen: list[weakref.ref[Tensor]] = []  # tensors that went by
        self._target: Fault | None = None
        self._error: BaseException = Injected()
        self._had = [(site, site.key in site.holder) for site in sites]
        for site in sites:
            site.holder[site.key] = self._standing_in(site)
        self._put = Stands.put
        if model is not None:
            names = {module: name for name, module in model.named_modules()}

            def put(stands: Stands, module: nn.Module, around: Callable[..., Any]) -> None:
                site = Site(f"{names[module]}.call", {}, None, around)
                self.calls.setdefault(site.name, 0)
                self._put(stands, module, self._standing_in(site))

            Stands.put = put  # type: ignore[method-assign]

    def arm(self, fault: Fault, error: BaseException) -> None:
        self.calls = dict.fromkeys(self.calls, 0)
        self._target, self._error = fault, error

    def restore(self) -> None:
        Stands.put = self._put  # type: ignore[method-assign]
        for site, had in self._had:
            if had:
                site.holder[site.key] = site.original
            else:
                del site.holder[site.key]

    def _standing_in(self, site: Site) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            number = self.calls[site.name]
            self.calls[site.name] += 1
            for value in (*args, *kwargs.values()):
                for tensor in value if isinstance(value, tuple) else (value,):
                    if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter):
                        self.seen.append(weakref.ref(tensor))
            self._raise(Fault(site.name, number, after=False))
            result = site.original(*args, **kwargs)
            self._raise(Fault(site.name, number, after=True))
            return result

        if hasattr(site.original, "__wrapped__"):  # generate() reads signatures
            call.__wrapped__ = site.original.__wrapped__  # type: ignore[attr-defined]
        return call

    def _raise(self, here: Fault) -> None:
        if self._target == here:
            self._target = None
            raise self._error


def answer(model: Any, inputs: dict[str, Any], new: int = NEW) -> Tensor:
    """Logits of each step of a greedy answer, [B, steps, vocabulary]."""
    output = model.generate(
        **inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    return torch.stack(output.logits, dim=1)


class Trial:
    """One model and what it answers. After a fault it must go on pruning within the block, and be as before outside.

    `prune(model)` is the block; `within`: faults in the model's own modules instead of what pruning puts in;
    `tolerance`: of the next answer's logits, where what a fault has broken off is done in another way from then on.
    """

    def __init__(
        self, model: Any, inputs: dict[str, Any], prune: Prune, within: bool = False, tolerance: float = 0.0
    ) -> None:
        self.model, self.inputs, self.prune, self.within, self.tolerance = model, inputs, prune, within, tolerance
        self.plain = answer(model, inputs)  # transformers installs hooks of its own at the first forward
        self.before = snapshot(model)
        with self._injecting() as injector:
            self.pruned = answer(model, inputs)
        self.calls = injector.calls

    def faults(self) -> list[Fault]:
        """Every call of every site, of a prefill and the decoding steps after it."""
        return [Fault(s, k, after) for s, count in self.calls.items() for k in range(count) for after in (False, True)]

    @contextmanager
    def _injecting(self) -> Iterator[Injector]:
        with self.prune(self.model):
            if self.within:
                injector = Injector(own(self.model))
            else:
                injector = Injector(installed(self.model, self.before), self.model)
            try:
                yield injector
            finally:
                injector.restore()

    def run(self, fault: Fault, error: BaseException) -> str:
        """What is wrong after a fault; empty where all is well."""
        with self._injecting() as injector:
            injector.arm(fault, error)
            try:
                answer(self.model, self.inputs)
            except BaseException as raised:
                if raised is not error:
                    return f"another error was raised: {raised!r}"
                raised.__traceback__ = None  # its frames hold activations
            else:
                return "no error was raised"
            if (answer(self.model, self.inputs) - self.pruned).abs().max() > self.tolerance:
                return "the next answer within the block is another"
        if snapshot(self.model) != self.before:
            return "the model is not as before"
        if kept := self._alive(injector):
            return f"activations are still alive: {kept}"
        if not torch.equal(answer(self.model, self.inputs), self.plain):
            return "the unpruned answer is another"
        return ""

    def _alive(self, injector: Injector) -> list[tuple[int, ...]]:
        """Shapes of tensors that went by and are still there, other than the inputs and what the model itself keeps."""
        gc.collect()
        owned = [*self.inputs.values(), *self.model.buffers(), *self.model.parameters()]
        owned += [getattr(m, name) for m in self.model.modules() for name in MADE_BY_A_PREFILL if hasattr(m, name)]
        known = {tensor.data_ptr() for tensor in owned if isinstance(tensor, Tensor)}
        tensors = [tensor for ref in injector.seen if (tensor := ref()) is not None]
        return [tuple(tensor.shape) for tensor in tensors if tensor.data_ptr() not in known]
