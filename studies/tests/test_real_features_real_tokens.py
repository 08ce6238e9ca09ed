"""The ops on real tokens of real photographs. Needs the extra `real-features`."""

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support import assert_same_bits

import vitcop_kernels as ops
from studies.real_features import document, measure, photographs, vit
from studies.real_features.measure import D_C, PRESETS, TAU, Tokens

WEIGHTS = vit.weights_file()
pytestmark = pytest.mark.skipif(WEIGHTS is None, reason=vit.MISSING)
PICTURES = ("chelsea.png", "rocket.jpg", "horse.png")
MACHINE = ("error", "bfloat16", "closest_log_gap", "ranks_moved")  # what the last bits of a machine decide


@pytest.fixture(scope="module")
def model() -> vit.VisionTransformer:
    assert WEIGHTS is not None
    return vit.VisionTransformer(vit.load_weights(WEIGHTS))


@pytest.fixture(scope="module")
def tokens(model: vit.VisionTransformer) -> dict[str, Tokens]:
    return {name: measure.tokens_of(model, photographs.load(name))[-2] for name in PICTURES}


def test_the_weights_are_those_of_the_result() -> None:
    assert WEIGHTS is not None
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == document.committed()["weights"]["sha256"]


def test_transformer_saliency_and_norms_are_onnxruntimes(model: vit.VisionTransformer) -> None:
    """The package's own file, run by onnxruntime at the size it was exported for."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    number = model.depth - 2
    attention = f"/backbone/encoder/layer.{number}/attention/attention"
    names = [f"{attention}/key/Add_output_0", f"{attention}/Softmax_output_0", "/backbone/layernorm/Add_1_output_0"]
    exported = onnx.load(WEIGHTS)
    exported.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = vit.normalised(photographs.load("astronaut.png", 224))
    key, softmax, last = map(torch.from_numpy, session.run(names, {"input_image": pixels.numpy()}))

    blocks, found = model(pixels)
    block = blocks[number]
    torch.testing.assert_close(found, last, rtol=1e-4, atol=2e-4)  # float32 through 12 blocks; tokens reach 12
    torch.testing.assert_close(block.key.transpose(1, 2).flatten(2), key, rtol=1e-4, atol=1e-4)
    saliency = ops.attention_saliency(block.query[:, :, :1], block.key)
    torch.testing.assert_close(saliency, softmax[:, :, 0].sum(1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ops.key_norms(block.key), key.norm(dim=-1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", PICTURES)
def test_clusters_are_those_of_float64(tokens: dict[str, Tokens], name: str) -> None:
    features, positions = tokens[name].features, tokens[name].positions
    count = ops.num_centers_for(PRESETS["1/9"][1], len(features))
    found = measure.cluster(features, positions, D_C, TAU, count)
    truth = measure.cluster_truth(features, positions, D_C, TAU, count)
    for got, want in zip(found[:3], truth[:3], strict=True):
        assert torch.equal(got, want)
    torch.testing.assert_close(found[3].double(), truth[3], rtol=2e-5, atol=0)
    # csrc/cpu/vic/gram.h bounds a dot product's error by 260 * 2^-24 |x||y|; d^2 has |x|^2, |y|^2 and 2 x.y.
    norms = features.double().norm(dim=1)
    bound = 260 * 2.0**-24 * (norms + norms[truth[2].clamp(min=0)]) ** 2
    finite = truth[4].isfinite()
    assert ((found[4].double() ** 2 - truth[4] ** 2).abs() <= bound)[finite].all()


def test_a_batch_gives_the_same_bits_as_each_picture(tokens: dict[str, Tokens]) -> None:
    features = torch.stack([t.features for t in tokens.values()])
    positions = next(iter(tokens.values())).positions
    batch = measure.cluster(features, positions, D_C, TAU, 70)
    for i in range(len(features)):
        assert_same_bits([t[i] for t in batch], measure.cluster(features[i], positions, D_C, TAU, 70))


@pytest.mark.parametrize("name", PICTURES)
def test_stage1_and_norms_are_those_of_float64(tokens: dict[str, Tokens], name: str) -> None:
    one = tokens[name]
    saliency, truth = measure.saliency_of(one), measure.saliency_of(one, torch.float64)
    assert truth.dtype == torch.float64
    torch.testing.assert_close(saliency.double(), truth, rtol=2e-6, atol=0)
    for share, _ in PRESETS.values():
        assert torch.equal(measure.kept(saliency, share), measure.kept(truth, share))
    torch.testing.assert_close(
        ops.key_norms(one.key), one.key.double().square().sum((0, 2)).sqrt().float(), rtol=1e-6, atol=0
    )


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, f"{name}/{key}")
    elif not any(word in name for word in MACHINE):
        yield name, value


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES[:2])
def test_the_result_can_be_measured_again(model: vit.VisionTransformer, name: str) -> None:
    """Within what the order of float32 sums changes; counts of tokens may not move by more than one."""
    want = dict(leaves(document.committed()["pictures"][str(photographs.SIDE)][name]))
    found = dict(leaves(measure.measure(model, photographs.load(name))))
    assert found.keys() == want.keys() and len(want) > 100
    for key, value in want.items():
        assert found[key] == pytest.approx(value, rel=2e-3, abs=1 if isinstance(value, int) else 2e-3), key
