"""Compiled layers and models: the same bits, no graph broken within a layer, nothing compiled again while decoding."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from families import Family, parameters
from torch._dynamo.utils import counters

import vitcop
from vitcop import ViTCoP

METHOD = ViTCoP(retention=0.3)
NEW = 5
DIFFERENT = "llava", "qwen2_5_vl", "internvl"  # adapters of towers


class Compiler:
    """Counts graphs, and runs them as they are: what inductor makes of a graph is not the question here."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, example: Any) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.fixture
def compiler() -> Iterator[Compiler]:
    torch._dynamo.reset()
    counters.clear()
    # Every layer is a graph of its own (its index is a constant), once per shape that it meets: 4 layers, 3 shapes.
    with torch._dynamo.config.patch(recompile_limit=16):
        yield Compiler()
    torch._dynamo.reset()


def wrap(layers: Any, compiler: Compiler) -> None:
    for i in range(len(layers)):
        layers[i] = torch.compile(layers[i], backend=compiler, fullgraph=True)


def in_place(layers: Any, compiler: Compiler) -> None:
    for layer in layers:
        layer.compile(backend=compiler, fullgraph=True)


def forward(layers: Any, compiler: Compiler) -> None:
    for layer in layers:
        layer.forward = torch.compile(layer.forward, backend=compiler, fullgraph=True)


def run(family: Family, model: Any, inside: Callable[[], None] | None = None) -> Any:
    inputs = family.batch([family.prompt(1), family.prompt(2)], dtype=next(model.parameters()).dtype)
    with vitcop.prune(model, METHOD):
        if inside is not None:
            inside()
        return model.generate(
            **inputs, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip


def assert_same(output: Any, expected: Any) -> None:
    assert torch.equal(output.sequences, expected.sequences)
    assert all(torch.equal(a, b) for a, b in zip(output.logits, expected.logits, strict=True))


@pytest.mark.feature("compiled decoder layers")
@pytest.mark.parametrize(
    ("family", "how", "dtype"),
    [
        *(
            pytest.param(*family.values, in_place, torch.float32, id=family.id, marks=family.marks)
            for family in parameters()
        ),
        *(
            pytest.param(*parameters("llava")[0].values, how, dtype, marks=pytest.mark.family("llava"))
            for how, dtype in ((wrap, torch.float32), (forward, torch.float32), (in_place, torch.bfloat16))
        ),
    ],
    indirect=["family"],
)
def test_whole_layers(family: Family, compiler: Compiler, how: Any, dtype: torch.dtype) -> None:
    model = family.build(
        layers=4, key_heads=4, dtype=dtype
    )  # grouped keys are repeated in a graph, and not elsewhere: other bits
    expected = run(family, model)
    layers, graphs = model.model.language_model.layers, []
    how(layers, compiler)
    before = [getattr(layer, "_compiled_call_impl", None) for layer in layers]
    hook = model.register_forward_hook(lambda *_: graphs.append(compiler.graphs))
    assert_same(run(family, model), expected)
    hook.remove()
    # Prefill, the first step (its queries are one), the second (its keys are as many as ever); then no more.
    assert graphs == [4, 8, *[12] * (NEW - 2)]
    assert [getattr(layer, "_compiled_call_impl", None) for layer in layers] == before


@pytest.mark.feature("compiled decoder layers")
@pytest.mark.parametrize("family", parameters("llava", "qwen2_5_vl"), indirect=True)
def test_the_whole_model_with_breaks_at_the_hooks(family: Family, compiler: Compiler) -> None:
    model = family.build(layers=4, key_heads=4)
    expected = run(family, model)
    model.compile(backend=compiler)
    graphs: list[int] = []
    hook = model.lm_head.register_forward_hook(torch.compiler.disable(lambda *_: graphs.append(compiler.graphs)))
    assert_same(run(family, model), expected)
    hook.remove()
    assert graphs[0] >= 4 and graphs[-1] == graphs[-2]


@pytest.mark.feature("compiled vision tower")
@pytest.mark.parametrize(
    ("family", "part"),
    [
        *(pytest.param(*p.values, "tower", id=f"{p.id}-tower", marks=p.marks) for p in parameters()),
        *(
            pytest.param(*p.values, part, id=f"{p.id}-{part}", marks=p.marks)
            for p in parameters(*DIFFERENT)
            for part in ("layers", "wrapped layers", "key projections")
        ),
    ],
    indirect=["family"],
)
def test_vision_towers(family: Family, compiler: Compiler, part: str) -> None:
    """Hooks of transformers, which capture outputs, break a layer's graph; ours must see their calls nevertheless."""
    model = family.build(layers=4)
    expected = run(family, model)
    tower = next(m for name, m in model.model.named_children() if name in ("vision_tower", "visual"))
    layers = next(m for m in tower.modules() if isinstance(m, torch.nn.ModuleList))
    if part == "tower":
        tower.compile(backend=compiler)
    elif part == "key projections":
        for name, module in tower.named_modules():
            if name.endswith(("k_proj", "k_norm", "qkv")):
                module.compile(backend=compiler)
    else:
        for i in range(len(layers)):
            if part == "layers":
                layers[i].compile(backend=compiler)
            else:
                layers[i] = torch.compile(layers[i], backend=compiler)
    before = [dict(layer.__dict__) for layer in layers]
    assert_same(run(family, model), expected)
    assert compiler.graphs >= 1
    assert [layer.__dict__ for layer in layers] == before


@pytest.mark.parametrize("family", parameters("llava"), indirect=True)
def test_layers_compiled_while_attached(family: Family, compiler: Compiler) -> None:
    """A layer that prunes is called through what stands in front of its graph."""
    model = family.build(layers=4)
    expected = run(family, model)
    layer = model.model.language_model.layers[2]
    assert_same(run(family, model, lambda: layer.compile(backend=compiler, fullgraph=True)), expected)
    assert compiler.graphs >= 3
