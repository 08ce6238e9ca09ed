"""Where an unpruned vitcop-tiny looks: attention and key norms, read from the model's own eager attention."""

from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from vitcop.evaluation.answering import Prompt

from .questions import Item

SHARES = tuple(range(5, 101, 5))  # per cent of the tokens
SAMPLES = 200  # questions
SHOWN = 24  # of them drawn as a heatmap


def looks(answerer: Any, images: list[Any], items: list[Item]) -> dict[str, Any]:
    """Attention of [CLS] and of the prompt's last token, norms of the decoder's keys, and how they go together."""
    model = answerer.model
    chosen = items[:: max(1, len(items) // SAMPLES)][:SAMPLES]
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        found = [_look(answerer, images[item.picture], item.question) for item in chosen]
    finally:
        model.set_attn_implementation(before)
    cls = np.stack([one["cls"] for one in found])  # [S, N]
    attention, norms = (np.stack([one[name] for one in found]) for name in ("attention", "norms"))  # [S, L, N]
    layers = attention.shape[1]
    correlations = [
        [float(stats.spearmanr(a, n).statistic) for a, n in zip(attention[:, layer], norms[:, layer], strict=True)]
        for layer in range(layers)
    ]
    spread = attention[:SHOWN] / attention[:SHOWN].sum(-1, keepdims=True)
    shown = np.sort(spread, axis=-1)[..., ::-1]  # each question's tokens by their own attention
    return {
        "questions": len(chosen),
        "shares": list(SHARES),
        "cls_mass": mass(cls),
        "attention_mass": [mass(attention[:, layer]) for layer in range(layers)],
        "visual_share": attention.sum(-1).mean(0).tolist(),  # of what the last token attends to
        "correlation": [float(np.mean(row)) for row in correlations],
        "correlation_quartiles": [np.percentile(row, (25, 75)).tolist() for row in correlations],
        "heatmap": shown.mean(0).round(6).tolist(),
    }


def mass(attention: np.ndarray) -> list[float]:
    """Share of the attention on visual tokens that the first `SHARES` per cent of them hold, mean over samples."""
    ordered = np.sort(attention, axis=-1)[:, ::-1]
    cumulated = ordered.cumsum(-1) / ordered.sum(-1, keepdims=True)
    tokens = attention.shape[-1]
    return [float(cumulated[:, max(1, round(share / 100 * tokens)) - 1].mean()) for share in SHARES]


@torch.inference_mode()
def _look(answerer: Any, image: Any, question: str) -> dict[str, np.ndarray]:
    model = answerer.model
    inputs = answerer.encode([Prompt(answerer.question(question, images=1), [image])])
    visual = inputs["input_ids"][0] == model.config.image_token_id
    keys: list[Tensor] = []
    hooks = [
        layer.self_attn.k_proj.register_forward_hook(lambda module, args, output: keys.append(output))
        for layer in model.model.language_model.layers
    ]
    try:
        output = model(**inputs, output_attentions=True)
        tower = model.model.vision_tower(inputs["pixel_values"], output_attentions=True)
    finally:
        for hook in hooks:
            hook.remove()
    layer = model.config.vision_feature_layer
    return {
        "cls": tower.attentions[layer][0, :, 0, 1:].sum(0).numpy(),
        "attention": np.stack([a[0, :, -1, visual].mean(0).numpy() for a in output.attentions]),
        "norms": np.stack([key[0, visual].norm(dim=-1).numpy() for key in keys]),
    }
