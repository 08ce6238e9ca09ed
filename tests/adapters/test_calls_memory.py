"""Memory of a prefill: its peak and its cache are those of Eq. 8's tokens, and nothing holds on to what was pruned."""

import gc
import weakref
from typing import Any

import pytest
import torch
from families import Family, parameters
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vitcop
from vitcop import ViTCoP
from vitcop.adapters import adapter_for
from vitcop.engine import memory

METHOD = ViTCoP(retention=0.3)


class Peak(TorchDispatchMode):
    """Bytes of the storages that ops have made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, Tensor):
                storage = made.untyped_storage()
                key = storage._cdata
                if key not in self.alive and key not in given:
                    self.alive[key] = storage.nbytes()
                    self.bytes += storage.nbytes()
                    self.peak = max(self.peak, self.bytes)
                    weakref.finalize(storage, self.free, key)
        return out

    def free(self, key: int) -> None:
        self.bytes -= self.alive.pop(key, 0)


def peak_of_decoder(model: Any, inputs: dict[str, Any]) -> int:
    """From the first layer to the last, the KV cache among it."""
    decoder, peak = model.model.language_model, Peak()
    first = decoder.layers[0].register_forward_pre_hook(lambda *_: peak.__enter__() and None, prepend=True)
    last = decoder.norm.register_forward_pre_hook(lambda *_: peak.__exit__(None, None, None))
    with torch.no_grad():
        model(**inputs, use_cache=True)
    first.remove()
    last.remove()
    return peak.peak


@pytest.mark.parametrize("family", parameters("llava", "llava_next", "llava_next_video", "internvl"))
def test_of_the_class_tokens_query_no_more_is_kept_than_its_row(family: Family) -> None:
    model = family.model()
    seen: list[Any] = []
    hooks = list(adapter_for(model).watch(seen))
    with torch.no_grad():
        model(**family.batch([family.prompt(2)]))
    for hook in hooks:
        hook.remove()
    (tokens,) = seen
    query = getattr(tokens, "run", tokens).query
    assert query.numel() > 0 and query.untyped_storage().nbytes() == query.nbytes


def behind(family: Family, first: dict[str, Any], second: dict[str, Any]) -> dict[str, Tensor]:
    """A second turn, with the mask of both, and with position ids where the model makes none of its own."""
    mask = torch.cat([first["attention_mask"], second["attention_mask"]], 1)
    if family.counts_tokens:
        return second | {"attention_mask": mask}
    columns = second["input_ids"].shape[1]
    return second | {"attention_mask": mask, "position_ids": mask.cumsum(1)[None, :, -columns:].expand(3, -1, -1)}


@pytest.mark.feature("memory")
@pytest.mark.parametrize("family", parameters("llava"), indirect=True)
@pytest.mark.parametrize("images", [2, 8])
def test_the_peak_shrinks_with_the_tokens(family: Family, images: int) -> None:
    model, inputs = family.model(), family.batch([family.prompt(images)])
    length, layers = inputs["input_ids"].shape[1], len(model.model.language_model.layers)
    column = 2 * 64 * 4  # bytes of one token's key and value in a layer
    plain = peak_of_decoder(model, inputs)
    width = (plain - layers * column * length) / length  # bytes of one token on its way through a layer
    assert width > 3 * column
    with vitcop.prune(model, METHOD) as report:
        pruned = peak_of_decoder(model, inputs)
    tokens = [n + report.text_tokens[0] for n in report.layer_tokens()]
    expected = max(column * sum(tokens[: layer + 1]) + width * n for layer, n in enumerate(tokens))
    # Besides: cos and sin of the whole prompt, of which slices are in use, the plans and what they are made of, all of
    # which have no width of hidden states; here cos and sin are an eighth of it, in a 7B model a sixteenth.
    assert expected <= pruned <= 1.09 * expected < 0.5 * plain
    assert report.computed_peak_bytes == pytest.approx(expected)


@pytest.mark.feature("memory")
def test_the_report_computes_the_peak(family: Family) -> None:
    """Also of a padded batch and a second turn: as measured without pruning, and little less than measured with it."""
    model, prompts = family.model(2), [family.prompt(2), family.prompt(1)]
    inputs = family.batch(prompts)
    plain = peak_of_decoder(model, inputs)
    with vitcop.prune(model, METHOD) as report:
        pruned = peak_of_decoder(model, inputs)
    # Besides: the padding mask, and what choosing takes, on tiny models.
    assert report.computed_peak_bytes_unpruned <= plain <= 1.15 * report.computed_peak_bytes_unpruned
    assert report.computed_peak_bytes <= pruned <= 1.35 * report.computed_peak_bytes
    assert report.computed_peak_bytes < 0.75 * report.computed_peak_bytes_unpruned
    assert report.peak_bytes is None and report.peak_bytes_before is None  # a CPU
    first, kv = report.computed_peak_bytes, report.kv_bytes
    with vitcop.prune(model, METHOD) as report, torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        again = family.batch([family.prompt(1, seed=4)] * 2)
        model(**behind(family, inputs, again), past_key_values=cache)
    assert report.computed_peak_bytes > kv  # the cache of the first turn is there throughout
    assert report.kv_bytes < report.computed_peak_bytes < first + report.kv_bytes


@pytest.mark.feature("memory")
@pytest.mark.parametrize("family", parameters("llava"), indirect=True)
def test_the_report_takes_the_peak_from_the_allocator(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the statistics of a GPU, which nobody resets but the user."""
    model, inputs, peak = family.model(), family.batch([family.prompt(4)]), Peak()
    monkeypatch.setattr(memory, "allocated", lambda device: (peak.bytes, peak.peak))
    decoder, after = model.model.language_model, []
    gc.collect()
    with vitcop.prune(model, METHOD) as report, torch.no_grad(), peak:
        # As the user would: torch.cuda.reset_peak_memory_stats().
        first = decoder.register_forward_pre_hook(lambda *_: setattr(peak, "peak", peak.bytes), prepend=True)
        last = decoder.register_forward_hook(lambda *_: after.append(peak.peak))
        model(**inputs, use_cache=True)
        first.remove()
        last.remove()
        assert report.peak_bytes_before is not None and report.peak_bytes == after[0]
        grown = report.peak_bytes - report.peak_bytes_before
        assert report.computed_peak_bytes <= grown <= 1.2 * report.computed_peak_bytes
        peak.peak = 1 << 40  # earlier, and higher: this one's cannot be told
        model(**inputs, use_cache=True)
        assert report.peak_bytes is report.peak_bytes_before is None


@pytest.mark.feature("memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_holds_what_the_report_says(family: Family, dtype: torch.dtype) -> None:
    """In every layer the tokens of Eq. 8, and no view of something longer; also after a second turn."""
    model = family.model(2, dtype=dtype)
    prompts = [family.prompt(1), family.prompt(2), family.prompt(0)]
    inputs = family.batch(prompts, dtype=dtype)
    with vitcop.prune(model, METHOD) as report, torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        for turn in range(2):
            tensors = [t for layer in cache.layers for t in (layer.keys, layer.values)]
            assert report.kv_bytes == sum(t.nbytes for t in tensors) < 0.7 * report.kv_bytes_unpruned
            assert sum(t.untyped_storage().nbytes() for t in tensors) == report.kv_bytes
            if not turn:
                longest = [
                    max(report.layer_tokens(sample)[layer] + report.text_tokens[sample] for sample in range(3))
                    for layer in range(len(cache.layers))
                ]
                assert [layer.keys.shape[2] for layer in cache.layers] == longest
                more = family.batch([family.prompt(1, seed=4)] * 3, dtype=dtype)
                model(**behind(family, inputs, more), past_key_values=cache)


def tensors_of(*roots: Any) -> list[Tensor]:
    """Every tensor that can be reached from plain Python objects."""
    found, seen, queue = [], set(), list(roots)
    while queue:
        thing = queue.pop()
        if id(thing) in seen or isinstance(thing, (type, torch.nn.Module)) or "module" in type(thing).__name__:
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            found += [] if isinstance(thing, torch.nn.Parameter) else [thing]
        elif type(thing).__module__.startswith(("vitcop", "builtins", "functools", "collections")):
            queue += [t for t in gc.get_referents(thing) if not callable(t) or type(t).__name__ == "method"]
    return found


@pytest.mark.feature("memory")
def test_nothing_that_was_pruned_outlives_the_prefill(family: Family) -> None:
    """Neither while decoding nor through the report, the handle or the cache."""
    model, inputs = family.model(), family.batch([family.prompt(2)])
    length = inputs["input_ids"].shape[1]
    layers = model.model.language_model.layers
    hidden: list[Any] = []
    alive: list[int] = []

    def watch(module: Any, args: Any, kwargs: Any) -> None:
        (states,) = args
        if states.shape[1] > 1:
            hidden.append(weakref.ref(states))
        else:
            if module is layers[0]:
                gc.collect()
            alive.append(sum(ref() is not None for ref in hidden))

    handle = vitcop.attach(model, METHOD)
    # Behind the handle's own hooks: what the layers get.
    hooks = [layer.register_forward_pre_hook(watch, with_kwargs=True) for layer in (layers[0], layers[2], layers[-1])]
    output = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    for hook in hooks:
        hook.remove()
    assert len(hidden) == 3 and set(alive) == {0}
    held = tensors_of(handle.report)
    assert held and not any(t.is_floating_point() for t in held)  # indices, labels, masks
    state = tensors_of(handle, *(layer.pruned for layer in output.past_key_values.layers))
    assert not any(t.is_floating_point() for t in state)
    for layer in output.past_key_values.layers[1:]:
        assert layer.keys.shape[2] < length
    handle.remove()
