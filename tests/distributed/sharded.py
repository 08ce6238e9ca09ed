"""Tasks of `worker.py` with sharded weights: each rank has prompts of its own, and keeps what one process keeps."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from families import FAMILIES
from torch import nn

import vitcop
from vitcop import FastV, PyramidDrop, SparseVLM, ViTCoP

METHODS: dict[str, Any] = {
    "PyramidDrop": PyramidDrop(retention=0.5),
    "FastV, by the layer before": FastV(retention=0.5),
    "SparseVLM, by the layer before": SparseVLM(kept=(8, 6, 4), layers=(2, 3, 4)),
    "ViTCoP": ViTCoP(retention=0.5),
    "ViTCoP, by key norms of the layer before": ViTCoP(retention=0.5, key_source="previous"),
    "ViTCoP, Stage II first": ViTCoP(stage1_ratio=1.0, stage2_ratio=0.5),
}
IMAGES = {"alike": (1, 1), "unlike": (1, 3), "none": (2, 0)}


def fsdp1(model: Any, use_orig_params: bool) -> Any:
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    kind = type(model.model.language_model.layers[0])
    cpu = torch.device("cpu")
    return FSDP(model, auto_wrap_policy=ModuleWrapPolicy({kind}), use_orig_params=use_orig_params, device_id=cpu)


def fsdp2(model: Any, mesh_names: tuple[str, ...] | None, root: bool = True) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    shape = (2,) if mesh_names is None or len(mesh_names) == 1 else (1, 2)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=mesh_names)
    for layer in model.model.language_model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh) if root else model


WAYS: dict[str, Callable[[Any], Any]] = {
    "FSDP1": partial(fsdp1, use_orig_params=True),
    "FSDP1, flat": partial(fsdp1, use_orig_params=False),
    "FSDP2": partial(fsdp2, mesh_names=None),
    "FSDP2, hybrid": partial(fsdp2, mesh_names=("dp_replicate", "dp_shard")),
    "FSDP2, layers alone": partial(fsdp2, mesh_names=("x",), root=False),
}


def run(model: nn.Module, inputs: Any, method: Any) -> tuple[Any, Any]:
    with torch.no_grad(), vitcop.prune(model, method) as report:
        logits = model(**inputs, use_cache=False).logits[:, -1]
    return logits, [stage.kept.tolist() for stage in report.stages]


def sharded(folder: Any) -> Any:
    """For each way to shard, number of images and method: how far logits are off, and what was kept, alone and not."""
    family, found = FAMILIES["llava"], {}
    alone = family.build(layers=6)
    for way, shard in WAYS.items():
        model = shard(family.build(layers=6))
        for case, images in IMAGES.items():
            inputs = family.batch([family.prompt(images[dist.get_rank()], seed=dist.get_rank())])
            for name, method in METHODS.items():
                want, kept = run(alone, inputs, method)
                got, sharded = run(model, inputs, method)
                found[way, case, name] = float((got - want).abs().max()), kept, sharded
    return found


class Samples(torch.utils.data.Dataset[Any]):
    """Prompts of one length, with as many labels each."""

    def __init__(self, count: int) -> None:
        family = FAMILIES["llava"]
        self.prompts = [family.prompt(1, seed=seed) for seed in range(count)]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids, pixels = torch.tensor(self.prompts[index][0]), self.prompts[index][1][0]
        labels = ids.masked_fill(torch.arange(len(ids)) < len(ids) - 4, -100)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, "labels": labels}


def trainer(folder: Any, rate: float = 0.1, count: int = 2) -> Any:
    """transformers' Trainer: a step, then an evaluation with metrics. The weights, and what the metrics were given."""
    from transformers import Trainer, TrainingArguments

    model, shown = FAMILIES["llava"].build(layers=4), []
    options = TrainingArguments(
        str(folder / "trainer"), per_device_train_batch_size=1, per_device_eval_batch_size=1, max_steps=1,
        learning_rate=rate, optim="sgd", max_grad_norm=0, lr_scheduler_type="constant", use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip

    def metrics(found: Any) -> dict[str, float]:
        shown.append((torch.as_tensor(found.predictions), torch.as_tensor(found.label_ids)))
        return {"seen": float(len(found.predictions))}

    work = Trainer(model, options, train_dataset=Samples(count), eval_dataset=Samples(3), compute_metrics=metrics)
    with vitcop.prune(model, ViTCoP(retention=0.5)) as report:
        work.train()
        others = ["cache", "past_key_values", "image_hidden_states", "image_outputs"]
        result = work.evaluate(ignore_keys=others)
    assert len(report.stages) == 3
    wrapped = type(work.model_wrapped).__name__
    return {"weights": model.state_dict(), "shown": shown, "seen": result["eval_seen"], "wrapped": wrapped}


def trained(folder: Any) -> Any:
    """DDP that looks for unused parameters: gradients are the mean over ranks."""
    family, grads = FAMILIES["llava"], []
    method = ViTCoP(retention=0.5)
    for rank in range(2):
        model, inputs = family.build(layers=6), family.batch([family.prompt(1 + rank, seed=rank)])
        with vitcop.prune(model, method):
            model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
    model, rank = family.build(layers=6), dist.get_rank()
    parallel = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    inputs = family.batch([family.prompt(1 + rank, seed=rank)])
    with vitcop.prune(parallel, method):
        parallel(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
    off = 0.0
    for name, weight in model.named_parameters():
        parts = [g[name] for g in grads if g[name] is not None]
        if parts:
            off = max(off, float((weight.grad - sum(parts) / 2).abs().max()))
    return off
