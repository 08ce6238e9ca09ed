"""Models that are trained or quantised: LoRA, 8-bit linear layers, gradient checkpointing, losses of batches."""

import copy
from typing import Any

import pytest
import torch
from checks import OLD, TOLERANCE, generate
from families import Family, parameters
from slow_llava import Turn
from torch import Tensor, nn

import vitcop
from vitcop import ViTCoP

METHOD = ViTCoP(retention=0.3)


def assert_answers(family: Family, model: Any, prompts: list[Any], output: Any, tolerance: float = TOLERANCE) -> None:
    """As `checks.assert_answers`, by the family's reference on this model's own modules."""
    got = torch.stack(output.logits, dim=1)
    for row, sample in enumerate(prompts):
        answer = output.sequences[row, -got.shape[1] :].tolist()
        with torch.no_grad():
            expected = family.logits(model, METHOD, [Turn(*sample)], answer)[-len(answer) - 1 : -1]
        torch.testing.assert_close(got[row], expected, atol=tolerance, rtol=0)


def labels_of(family: Family, inputs: dict[str, Any]) -> Tensor:
    """Words, without the first of each sample: it would be predicted from padding."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    visual = torch.isin(ids, torch.tensor(family.placeholders()))
    return ids.masked_fill(visual | (mask.cumsum(1) * mask < 2), -100)


def lora(model: Any) -> Any:
    """The model under peft, with adapters on the projections that are neither zero nor merged."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False)
    return peft.get_peft_model(model, config).eval()


@pytest.mark.feature("LoRA (peft)")
def test_lora_answers(family: Family) -> None:
    """Key norms are of the keys with the adapter: they are not those of the base model."""
    model = family.build(key_heads=2)
    prompts = [family.prompt(1)]
    _, before = generate(model, METHOD, family.batch(prompts), new=1)
    adapted = lora(model)
    output, report = generate(adapted, METHOD, family.batch(prompts), new=2)
    assert not torch.equal(before.stages[-1].kept, report.stages[-1].kept)
    assert_answers(family, model, prompts, output)


@pytest.mark.feature("LoRA (peft)")
@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.skipif(OLD, reason="refused"))])
@pytest.mark.parametrize("family", parameters("llava"), indirect=True)
def test_lora_learns(family: Family, checkpointing: bool) -> None:
    """A step down the gradient of the adapters alone makes the loss smaller, and leaves the rest as it was."""
    model = family.build()
    adapted = lora(model).train()
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    inputs = family.batch([family.prompt(1), family.prompt(2)])
    labels = labels_of(family, inputs)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    frozen = {n: p.clone() for n, p in adapted.named_parameters() if not p.requires_grad}
    with vitcop.prune(adapted, METHOD) as report:
        loss = adapted(**inputs, labels=labels).loss
        loss.backward()
        assert len(report.stages) == 3
        used = [p.grad for p in trained if p.grad is not None]
        assert len(used) >= 2 * 3 * 8 and all(grad.isfinite().all() for grad in used)
        square = sum(float(grad.square().sum()) for grad in used)
        with torch.no_grad():
            for weight in trained:
                if weight.grad is not None:
                    weight -= 0.01 / square**0.5 * weight.grad
            after = adapted(**inputs, labels=labels).loss
    assert after < loss
    assert all(torch.equal(frozen[n], p) for n, p in adapted.named_parameters() if n in frozen)


class Int8Linear(nn.Linear):
    """Rows of int8 with a scale each, as weight-only quantisation has them: `weight` alone is not what it computes."""

    def __init__(self, plain: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = plain.in_features, plain.out_features, plain.bias
        scale = plain.weight.detach().abs().amax(1, keepdim=True) / 127
        self.scale = nn.Buffer(scale)
        self.weight = nn.Parameter((plain.weight.detach() / scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


@pytest.mark.feature("8-bit linear layers")
def test_int8_weights(family: Family) -> None:
    model = family.build(key_heads=2)
    for layer in model.model.language_model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, child in list(block.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(block, name, Int8Linear(child))
    prompts = [family.prompt(2)]
    output, report = generate(model, METHOD, family.batch(prompts), new=2)
    assert len(report.stages) == 3
    assert_answers(family, model, prompts, output)


@pytest.mark.feature("8-bit linear layers")
@pytest.mark.parametrize("family", parameters("llava"), indirect=True)
def test_bitsandbytes(family: Family) -> None:
    """LLM.int8 also rounds activations, in groups that depend on what is computed together: the choice is given."""
    bnb = pytest.importorskip("bitsandbytes")
    model = family.build()
    for layer in model.model.language_model.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            plain = getattr(layer.self_attn, name)
            quantised = bnb.nn.Linear8bitLt(
                plain.in_features, plain.out_features, bias=False, has_fp16_weights=False, threshold=0.0
            )
            quantised.load_state_dict({"weight": plain.weight.detach()})
            setattr(layer.self_attn, name, quantised.to("cpu"))
    assert model.model.language_model.layers[0].self_attn.k_proj.weight.dtype == torch.int8
    calls: list[str] = []
    hook = model.model.language_model.layers[2].self_attn.k_proj.register_forward_hook(lambda *_: calls.append("k"))
    sample = family.prompt(1)
    output, report = generate(model, METHOD, family.batch([sample]), new=2)
    hook.remove()
    assert len(calls) == 3  # its key norms once, the layer itself twice
    got, answer = torch.stack(output.logits, dim=1)[0], output.sequences[0, -2:].tolist()
    kept = [stage.kept[0].tolist() for stage in report.stages]
    assert [len(k) for k in kept] == [stage.tokens_out[0] for stage in report.stages]
    with torch.no_grad():
        expected = family.logits(model, METHOD, [Turn(*sample)], answer, kept)[-3:-1]
    # Rows are quantised one by one (127 steps of their largest value), and the reference multiplies them one by one.
    torch.testing.assert_close(got, expected, atol=0.1 * float(expected.std()), rtol=0)


@pytest.mark.feature("gradient checkpointing")
@pytest.mark.skipif(OLD, reason="refused before transformers 5, see test_refusals")
@pytest.mark.parametrize(
    ("family", "reentrant", "dtype"),
    [
        *(
            pytest.param(*family.values, False, torch.float32, id=family.id, marks=family.marks)
            for family in parameters()
        ),
        pytest.param(*parameters("llava")[0].values, True, torch.float32, marks=pytest.mark.family("llava")),
        pytest.param(*parameters("llava")[0].values, False, torch.bfloat16, marks=pytest.mark.family("llava")),
    ],
    indirect=["family"],
)
def test_gradient_checkpointing(family: Family, reentrant: bool, dtype: torch.dtype) -> None:
    """Of a padded batch, reentrant or not: the loss and the gradients of every weight that has one."""
    model = copy.deepcopy(family.model(2, dtype=dtype))
    inputs = family.batch([family.prompt(1), family.prompt(2), family.prompt(0)], dtype=dtype)
    labels = labels_of(family, inputs)
    with vitcop.prune(model, METHOD):
        plain = model(**inputs, labels=labels).loss
        plain.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert len(expected) > 50
    model.zero_grad(set_to_none=True)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    with vitcop.prune(model, METHOD) as report:
        loss = model(**inputs, labels=labels).loss
        loss.backward()
    assert len(report.stages) == 3
    torch.testing.assert_close(loss, plain)
    for name, weight in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(weight.grad, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.feature("labels, loss and gradients")
def test_the_loss_is_the_references(family: Family) -> None:
    model, prompts = family.model(2), [family.prompt(2), family.prompt(1), family.prompt(0)]
    inputs = family.batch(prompts)
    labels = labels_of(family, inputs)
    with vitcop.prune(model, METHOD), torch.no_grad():
        loss = model(**inputs, labels=labels).loss
    total, count = torch.zeros(()), 0
    for ids, images in prompts:
        with torch.no_grad():
            logits = family.logits(model, METHOD, [Turn(ids, images)], [])
        for column in range(1, len(ids)):
            # A word after an image that is predicted from a pruned token: all 0, so every word is as likely.
            if ids[column] not in family.placeholders():
                row = logits[column - 1].nan_to_num(0.0)
                total, count = total - row.log_softmax(-1)[ids[column]], count + 1
    torch.testing.assert_close(loss, total / count, rtol=1e-4, atol=0)


@pytest.mark.feature("labels, loss and gradients")
@pytest.mark.parametrize("family", parameters("llava"), indirect=True)
def test_pruned_tokens_have_no_gradient(family: Family) -> None:
    """Pixels and projected features: through what survives the gradient flows, past Stage I nothing else does."""
    model, method = family.model(), ViTCoP(retention=0.3, saliency="key_norm_only")
    inputs = family.batch([family.prompt(1)])
    features: list[Tensor] = []
    hook = model.model.multi_modal_projector.register_forward_hook(
        lambda m, a, out: features.append(out.requires_grad_()) or out.retain_grad()
    )
    with vitcop.prune(model, method) as report:
        model(**inputs, labels=labels_of(family, inputs)).loss.backward()
    hook.remove()
    alive = (features[0].grad.flatten(0, 1) != 0).any(-1).nonzero().flatten()
    assert alive.tolist() == report.stages[0].kept[0].tolist()
