"""Train vitcop-tiny from scratch: `python -m studies.training.train --out DIR`. It goes on where it was stopped.

1. vision: the tower alone, with heads that are thrown away (see model.WarmUpHeads).
2. decoder: projector and decoder on packed questions; the tower stays as it is.

Everything follows from the seed: a batch from its number, and the order of the batches. AdamW, cosine schedules.
"""

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from . import model as tiny
from .batches import BOS, PATCHES, TASKS, Batches

SETTINGS = {
    "vision": {"steps": 2200, "size": 32, "length": 0, "rate": 1.5e-3, "decay": 0.05, "flat": 0.4},
    "decoder": {"steps": 3600, "size": 10, "length": 320, "rate": 1e-3, "decay": 0.02, "flat": 0.5},
}


def rate_at(step: int, steps: int, flat: float) -> float:
    """Share of the learning rate: a short warm-up, a plateau, a cosine."""
    done = step / steps
    cosine = 0.5 * (1 + math.cos(math.pi * max(0.0, done - flat) / (1 - flat)))
    return min(1.0, (step + 1) / 100) * (cosine + 0.02)


def batches(phase: str, start: int, seed: int, device: torch.device) -> Iterator[tuple[int, dict[str, Tensor]]]:
    settings = SETTINGS[phase]
    steps = int(settings["steps"])
    data = Batches("train", int(settings["size"]), int(settings["length"]), steps, seed=seed + (phase == "vision"))
    loader = DataLoader(Subset(data, range(start, steps)), batch_size=None, num_workers=1, prefetch_factor=8)
    for step, batch in enumerate(loader, start):
        yield step, {name: tensor.to(device) for name, tensor in batch.items()}


def answers(model: Any, features: Tensor, batch: dict[str, Tensor], ids_of_patches: Tensor) -> Tensor:
    """Logits `[B, T, V]` of packed questions: a row sees [BOS], the patches and its own question up to itself."""
    size, length = batch["ids"].shape
    embed = model.get_input_embeddings()
    first = embed(batch["ids"].new_full((size, 1), BOS))
    embeds = torch.cat([first, model.model.multi_modal_projector(features[:, 1:]), embed(batch["ids"])], dim=1)
    prefix = 1 + PATCHES
    segment = torch.cat([batch["segment"].new_full((size, prefix), -2), batch["segment"]], dim=1)
    place = torch.arange(prefix + length, device=segment.device)
    seen = (segment[:, None, :] == -2) | (segment[:, :, None] == segment[:, None, :])
    mask = (seen & (place[:, None] >= place))[:, None]
    ids = torch.cat([ids_of_patches, ids_of_patches[:, -1:] + 1 + batch["offset"]], dim=1)
    decoder = model.model.language_model
    hidden = decoder(inputs_embeds=embeds, attention_mask=mask, position_ids=ids, use_cache=False).last_hidden_state
    return model.lm_head(hidden[:, prefix:])


def places(size: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Position ids `[B, 1 + PATCHES]` of [BOS] and patches. For half of the pictures they are squeezed together by a
    random factor, as renumbering after pruning does: where a patch is, its features must say. No token is dropped."""
    place = torch.arange(1 + PATCHES)
    squeeze = torch.rand(size, 1, generator=generator)
    squeeze = torch.where(torch.rand(size, 1, generator=generator) < 0.5, 1.0, 0.05 + 0.95 * squeeze)
    return (place * squeeze).long().to(device)


def train(phase: str, out: Path, seed: int, minutes: float, compiled: bool = False) -> bool:
    """One phase, or as much of it as the minutes allow; True when it is through. `compiled`: by torch.compile, which
    takes a minute and saves a fifth of the time on a CPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings, path = SETTINGS[phase], out / f"{phase}.pt"
    steps, begin = int(settings["steps"]), time.time()
    model = tiny.build(seed).to(device)
    heads = tiny.WarmUpHeads().to(device)
    if phase == "vision":
        learns = [*model.model.vision_tower.parameters(), *heads.parameters()]
    else:
        learns = [p for name, p in model.named_parameters() if "vision_tower" not in name]
    optimizer = torch.optim.AdamW(learns, lr=settings["rate"], weight_decay=settings["decay"], betas=(0.9, 0.98))
    start = 0
    found = path if path.exists() else out / "vision.pt" if phase == "decoder" else None
    if found is not None and found.exists():
        state = torch.load(found, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        if found == path:
            optimizer.load_state_dict(state["optimizer"])
            start = state["step"]

    def save(step: int) -> None:
        state = {"model": model.state_dict(), "heads": heads.state_dict(), "step": step}
        torch.save(state | {"optimizer": optimizer.state_dict()}, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)

    loss_of = torch.compile(LOSSES[phase], dynamic=False) if compiled else LOSSES[phase]
    model.train()
    last, total, count = begin, 0.0, 0
    for step, batch in batches(phase, start, seed, device):
        optimizer.param_groups[0]["lr"] = settings["rate"] * rate_at(step, steps, settings["flat"])
        with torch.autocast(device.type, torch.bfloat16):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            squeezed = places(len(batch["pixels"]), generator, device)
            loss = loss_of(model, heads, batch, squeezed)
        loss.backward()
        nn.utils.clip_grad_norm_(learns, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total, count = total + loss.item(), count + 1
        stop = (time.time() - begin) / 60 > minutes
        if stop or time.time() - last > 60 or step + 1 == steps:
            spent = (time.time() - last) / count
            found = report(model, heads, phase)
            print(f"{phase} {step + 1}/{steps}: loss {total / count:.4f}, {spent:.2f} s a step, {found}", flush=True)
            save(step + 1)
            last, total, count = time.time(), 0.0, 0
        if stop:
            return step + 1 == steps
    return True


def vision_loss(model: Any, heads: Any, batch: dict[str, Tensor], ids_of_patches: Tensor) -> Tensor:
    loss: Tensor = heads(*tiny.see(model, batch["pixels"]), batch)
    return loss


def decoder_loss(model: Any, heads: Any, batch: dict[str, Tensor], ids_of_patches: Tensor) -> Tensor:
    """Of the answers alone."""
    with torch.no_grad():
        features, _ = tiny.see(model, batch["pixels"])
    logits = answers(model, features, batch, ids_of_patches)
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch["target"].flatten(), ignore_index=-1)


LOSSES = {"vision": vision_loss, "decoder": decoder_loss}


@torch.no_grad()
def report(model: Any, heads: Any, phase: str) -> str:
    """Held-out accuracy so far, on the validation split."""
    device = next(model.parameters()).device
    batch = {k: v.to(device) for k, v in Batches("validation", 32, 320 if phase == "decoder" else 0, 1)[0].items()}
    with torch.autocast(device.type, torch.bfloat16):
        features, _ = tiny.see(model, batch["pixels"])
        if phase == "vision":
            there = batch["patch_kind"] > 0
            kind = heads.kind(features[:, 1:]).argmax(-1) == batch["patch_kind"]
            color = heads.color(features[:, 1:]).argmax(-1) == batch["patch_color"]
            parts = {"kind": kind[there], "color": color[there], "background": kind[~there]}
            return " ".join(f"{name} {part.float().mean():.3f}" for name, part in parts.items())
        whole = torch.arange(1 + PATCHES, device=device).expand(len(features), -1)
        right = answers(model, features, batch, whole).argmax(-1) == batch["target"]
    return " ".join(f"{task} {value:.2f}" for task, value in whole_answers(right, batch).items())


def whole_answers(right: Tensor, batch: dict[str, Tensor]) -> dict[str, float]:
    """Share of answers with every token right, by task."""
    asked, wrong = torch.zeros(len(TASKS)), torch.zeros(len(TASKS))
    for row in range(len(right)):
        segment, task, counts = batch["segment"][row], batch["task"][row], batch["target"][row] >= 0
        for number in range(int(segment.max()) + 1):
            here = segment == number
            index = int(task[here][0])
            asked[index] += 1
            wrong[index] += float(not bool(right[row][here & counts].all()))
    return {task: float(1 - wrong[i] / asked[i]) for i, task in enumerate(TASKS) if asked[i]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/training"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long; the next call goes on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    begin = time.time()
    for phase in SETTINGS:
        if not train(phase, options.out, options.seed, options.minutes - (time.time() - begin) / 60, options.compile):
            break


if __name__ == "__main__":
    main()
