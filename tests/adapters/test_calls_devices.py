"""Weights that are elsewhere until a module is called, as Accelerate's `device_map` places them: the same bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checks import OLD, generate
from families import Family, parameters

from vitcop import ViTCoP

METHODS = [ViTCoP(retention=0.3), ViTCoP(retention=0.3, semantics="released", saliency="attention")]


def assert_same(family: Family, model: Any, plain: Any, method: Any) -> None:
    inputs = family.batch([family.prompt(1), family.prompt(2)], dtype=plain.dtype)
    expected, wanted = generate(plain, method, inputs, new=2)
    output, report = generate(model, method, inputs, new=2)
    assert torch.equal(output.sequences, expected.sequences)
    assert all(torch.equal(a, b) for a, b in zip(output.logits, expected.logits, strict=True))
    assert all(torch.equal(a.kept, b.kept) for a, b in zip(report.stages, wanted.stages, strict=True))


@pytest.mark.feature("device_map", note="offloaded to the CPU and to disk; not yet run on several GPUs")
@pytest.mark.parametrize("family", parameters("llava"), indirect=True)  # others read a weight before they are called
@pytest.mark.parametrize("method", METHODS, ids=["paper", "released, attention"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_offloaded_to_the_cpu(family: Family, method: Any, dtype: torch.dtype) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.cpu_offload(family.build(layers=5, dtype=dtype), execution_device="cpu")
    layer = model.model.language_model.layers[2]
    assert layer.self_attn.k_proj.weight.device.type == "meta" == layer.input_layernorm.weight.device.type
    assert_same(family, model, family.build(layers=5, dtype=dtype), method)


@pytest.mark.feature("device_map", note="offloaded to the CPU and to disk; not yet run on several GPUs")
def test_layers_split_over_memory_and_disk(family: Family, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    plain = family.build(layers=5)
    plain.save_pretrained(tmp_path / "model")
    names = [f"model.{name}" for name, _ in plain.model.named_children() if name != "language_model"]
    names += [f"model.language_model.{name}" for name, _ in plain.model.language_model.named_children()]
    names += [f"model.{name}" for name, _ in plain.model.named_parameters(recurse=False)]
    # Qwen3-VL of 4.57 reads a weight of its tower before it is called.
    tower = "cpu" if OLD and family.name == "qwen3_vl" else "disk"
    places = dict.fromkeys([*names, "lm_head"], "cpu") | {f"model.{family.tower}": tower}
    del places["model.language_model.layers"]
    places |= {f"model.language_model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(5)}
    model = type(plain).from_pretrained(tmp_path / "model", device_map=places, offload_folder=tmp_path / "disk")
    model.generation_config = plain.generation_config
    devices = [layer.self_attn.k_proj.weight.device.type for layer in model.model.language_model.layers]
    assert devices == ["cpu", "meta", "cpu", "meta", "cpu"]
    assert_same(family, model.eval(), plain, METHODS[0])
