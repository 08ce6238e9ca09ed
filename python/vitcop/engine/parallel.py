"""Tensor parallelism: ranks share the heads of a layer, every one has all tokens, and all must choose the same ones.

Data parallelism, FSDP and ZeRO included, needs none of it: ranks have samples of their own, and choose by themselves.
"""

import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vitcop.methods.base import Plan

MARKS = ("_is_hooked", "_distribute_module_applied")
"""What transformers' `tp_plan` and torch's `parallelize_module` leave on the modules that they make tensor parallel."""


def group_of(attention: Any, key_heads: int | None = None) -> Any:
    """The process group that shares the key heads of an attention layer; None where this rank has all of them.

    FSDP and ZeRO shard weights, too, but every rank has data of its own and gets whole weights to compute with: only
    weights that were made tensor parallel share heads.

    Args:
        key_heads: key heads that this rank was found to have, where that is known.

    Raises NotImplementedError where heads are missing, and no sharded weight says who has them.
    """
    total = getattr(attention.config, "num_key_value_heads", None)
    if key_heads is not None and key_heads == total:
        return None
    if dist.is_available() and dist.is_initialized():
        projection = getattr(attention, "qkv_proj" if hasattr(attention, "qkv_proj") else "k_proj")
        if is_shared(projection):
            for weight in projection.parameters():
                group = _tensor_parallel_group(weight)
                if group is not None:
                    return group
    if key_heads is not None and total is not None:
        raise NotImplementedError(
            f"tensor parallel: expected {total} key heads, or DTensor weights as tp_plan makes them, got {key_heads}"
        )
    return None


def several_processes() -> bool:
    """Whether other processes may run the same model."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_shared(projection: Any) -> bool:
    """Whether a module was made tensor parallel."""
    return any(getattr(projection, mark, False) for mark in MARKS)


def _tensor_parallel_group(weight: Any) -> Any:
    from torch.distributed.tensor import DTensor

    if not isinstance(weight, DTensor) or not any(placement.is_shard() for placement in weight.placements):
        return None
    mesh = weight.device_mesh
    if mesh.ndim == 1:
        return mesh.get_group()
    names = [name for name in mesh.mesh_dim_names or () if "tp" in name.lower() or "tensor" in name.lower()]
    if len(names) != 1:
        raise NotImplementedError(
            f"tensor parallel: expected a device mesh with a dimension named 'tp', got {mesh.mesh_dim_names}"
        )
    return mesh.get_group(names[0])


def is_sharded(weight: Any) -> bool:
    """Whether FSDP has but a part of a weight here now, so that it cannot be computed with."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor

    return weight.numel() == 0 or isinstance(weight, DTensor)


def key_norms(keys: Tensor, heads: str, total_heads: int, group: Any) -> Tensor:
    """`vitcop_kernels.key_norms` of keys `[B, H of this rank, N, d]`: sums over heads run over all ranks (Eq. 4)."""
    part = keys.double().square().sum((1, 3)) if heads == "l2" else keys.double().sum(1)
    dist.all_reduce(part, group=group)
    norms = part.sqrt() if heads == "l2" else (part / total_heads).norm(dim=-1)
    return norms.to(torch.float64 if keys.dtype == torch.float64 else torch.float32)


def sum_over_heads(received: Tensor, group: Any) -> Tensor:
    """Attention rows that each rank summed over its own heads, summed over all of them."""
    dist.all_reduce(received, group=group)
    return received


def first_ranks(plan: Plan, group: Any) -> Plan:
    """The plan of the group's first rank. Kernels of other devices, or of another size, may round another way."""
    held = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}
    parts = {name: value for name, value in held.items() if isinstance(value, Tensor)}
    packed = torch.cat([part.flatten().long() for part in parts.values()])
    dist.broadcast(packed, dist.get_global_rank(group, 0), group=group)
    flat = packed.split([part.numel() for part in parts.values()])
    same = {n: f.view(p.shape).to(p.dtype) for (n, p), f in zip(parts.items(), flat, strict=True)}
    return dataclasses.replace(plan, **same)


def first_ranks_tensor(tensor: Tensor, group: Any) -> Tensor:
    """The same of what a plan puts into its slots, bit for bit. Gradients stay this rank's."""
    same = tensor.clone(memory_format=torch.contiguous_format)
    dist.broadcast(same.data, dist.get_global_rank(group, 0), group=group)
    return same
