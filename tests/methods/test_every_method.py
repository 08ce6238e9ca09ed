"""What holds for each method of `METHODS`, and for those that the documents show."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import TOLERANCE, generate
from families import FAMILIES
from test_no_host_sync import Watch
from tiny_llava import batch, prompt

import vitcop
from vitcop import SparseVLM, VisionZip, budget
from vitcop.adapters import adapter_for
from vitcop.methods import METHODS, Method
from vitcop.methods.replay import Replay

ROOT = Path(__file__).parents[2]
SHOWN = {"MergeThenDrop": ROOT / "CONTRIBUTING.md", "SmallKeys": ROOT / "docs" / "methods" / "index.md"}


def from_the_docs(document: Path, name: str) -> Method:
    """The method that a document shows, as a reader would copy it."""
    blocks = re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)
    (code,) = (block for block in blocks if f"class {name}(Method)" in block)
    names: dict[str, Any] = {}
    exec(code, names)
    return names[name]()


def build(name: str) -> Method:
    return from_the_docs(SHOWN[name], name) if name in SHOWN else METHODS[name](retention=0.55)  # type: ignore[call-arg]


@pytest.fixture(params=[*METHODS, *SHOWN])
def method(request: pytest.FixtureRequest) -> Method:
    return build(request.param)


def test_a_sample_alone_and_in_a_padded_batch_choose_alike(llava: Any, method: Method) -> None:
    model, prompts = llava(2), [prompt(1), prompt(2, text=9), prompt(0), prompt(1, seed=1, text=7)]
    output, together = generate(model, method, batch(prompts), new=2)
    for sample in (1, 3):
        single, alone = generate(model, method, batch([prompts[sample]]), new=2)
        for a, b in zip(together.stages, alone.stages, strict=True):
            count = b.tokens_out[0]
            assert a.tokens_out[sample] == count and a.segments(sample) == b.segments(0)
            assert a.kept[sample, :count].tolist() == b.kept[0].tolist()
        for a, b in zip(output.logits, single.logits, strict=True):
            torch.testing.assert_close(a[sample], b[0], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "llava"])
def test_on_other_families_a_sample_alone_and_in_a_batch_choose_alike(method: Method, name: str) -> None:
    family = FAMILIES[name]
    model, prompts = family.model(), [family.prompt(1), family.prompt(2), family.prompt(0)]
    if isinstance(method, VisionZip) and family.tower == "visual":
        message = f"hidden states of the vision tower, which {type(adapter_for(model)).__name__} does not offer"
        with vitcop.prune(model, method), pytest.raises(NotImplementedError, match=message):
            model(**family.batch(prompts))
        return
    if isinstance(method, SparseVLM):  # a share of few tokens leaves none beside the means
        method = SparseVLM(kept=(9, 5, 2))
    found = []
    for inputs in (family.batch(prompts), family.batch(prompts[:1])):
        with vitcop.prune(model, method) as report, torch.no_grad():
            logits = model(**inputs).logits[0, -1]
        found.append(([stage.segments(0) for stage in report.stages], logits))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], atol=TOLERANCE, rtol=0)


def test_text_alone_is_left_as_it_is(llava: Any, method: Method) -> None:
    inputs = batch([prompt(0)])
    plain = llava().generate(**inputs, max_new_tokens=2, do_sample=False)
    output, report = generate(llava(), method, inputs, new=2)
    assert torch.equal(output.sequences, plain) and report.stages == []


def test_the_report_counts_what_the_layers_really_ran_on(llava: Any, method: Method) -> None:
    model, widths = llava(), []
    prompts = [prompt(1)]
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda m, args: widths.append(args[0].shape[1]))
        for layer in model.model.language_model.layers
    ]
    try:
        with vitcop.prune(model, method) as report, torch.no_grad():
            model(**batch(prompts), use_cache=True)
    finally:
        for hook in hooks:
            hook.remove()
    text = len(prompts[0][0]) - 16
    tokens = [width - text for width in widths]
    assert report.layer_tokens(0) == tokens and report.mean_tokens == sum(tokens) / 8
    shape = model.config.text_config
    # The counter reads a layer's input before the layer prunes; Eq. 9 counts every layer from one later on.
    reading, printed = [tokens[0], *tokens[:-1]], [*tokens[1:], tokens[-1]]
    counted = budget.flops_counter([n + text for n in reading], shape.hidden_size, shape.intermediate_size)
    assert report.flops.counter == pytest.approx(counted)
    assert report.flops.eq9 == pytest.approx(sum(budget.flops_layer(n + text, shape.hidden_size) for n in printed))
    assert 0 < report.selection_seconds == pytest.approx(sum(stage.seconds for stage in report.stages))


def test_no_value_is_read(llava: Any, method: Method) -> None:
    model, watch = llava(), Watch()
    decoder = model.model.language_model
    with vitcop.prune(model, method) as report, torch.no_grad():
        first = decoder.layers[0].register_forward_pre_hook(lambda *_: watch.__enter__() and None, prepend=True)
        last = decoder.norm.register_forward_pre_hook(lambda *_: watch.__exit__(None, None, None))
        model(**batch([prompt(n) for n in (1, 2, 0, 1)]), use_cache=True)
        first.remove()
        last.remove()
    assert report.stages and watch.count > 100
    assert watch.found == []


def test_replaying_gives_the_same_bits(llava: Any, method: Method) -> None:
    inputs = batch([prompt(1), prompt(2)])
    output, report = generate(llava(), method, inputs, new=2)
    again, _ = generate(llava(), Replay(report), inputs, new=2)
    assert all(torch.equal(a, b) for a, b in zip(output.logits, again.logits, strict=True))


def test_everything_retained_is_the_unpruned_model(llava: Any) -> None:
    model, inputs = llava(), batch([prompt(1), prompt(2)])
    with torch.no_grad():
        plain = model(**inputs).logits
        for name, kind in METHODS.items():
            with vitcop.prune(model, kind(retain=64)) as report:  # type: ignore[call-arg]
                assert torch.equal(model(**inputs).logits, plain), name
            assert report.mean_tokens == 24


def test_a_later_turn_goes_on_from_what_was_left(llava: Any, method: Method) -> None:
    """A second prefill over the pruned cache equals decoding its tokens one by one."""
    model, said = llava(2), torch.tensor([[11, 12, 13]])
    got = []
    for steps in ([said], said.split(1, dim=1)):
        with vitcop.prune(model, method), torch.no_grad():
            output = model(**batch([prompt(1)]), use_cache=True)
            cache = output.past_key_values
            rows = [model(input_ids=ids, past_key_values=cache).logits for ids in steps]
        got.append(torch.cat(rows, dim=1))
    torch.testing.assert_close(got[0], got[1], atol=TOLERANCE, rtol=0)
