"""Kernel configurations as data, for compiling ahead of time without a GPU."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class AotSpec:
    """One configuration that dispatch can choose.

    signature: Triton types by argument name, such as {"p_x": "*bf16", "n": "i32"}; constexpr arguments left out.
    divisible: arguments known to be multiples of 16 (and of that alignment, for pointers).
    claims: instructions that the machine code must have, by backend and lowest compute capability, such as
        {"cuda:90": "wgmma", "cuda:80": "mma", "hip": "mfma"}.
    """

    name: str
    kernel: Any  # a @triton.jit function
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    claims: dict[str, str] = field(default_factory=dict)
    divisible: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)  # further launch options, such as launch_cooperative_grid
    backends: tuple[str, ...] = ("cuda", "hip")  # where dispatch can choose it
