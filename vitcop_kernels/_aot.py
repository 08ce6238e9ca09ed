"""Kernel configurations as data, for compiling ahead of time without a GPU."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class AotSpec:
    """One configuration that dispatch can choose.

    signature: Triton types by argument name, such as {"p_x": "*bf16", "n": "i32"}; constexpr arguments left out.
    divisible: arguments known to be multiples of 16 (and of that alignment, for pointers).
    claims: the tensor-core instruction that the machine code must have, by backend and lowest compute capability, such
        as {"cuda:80": "mma", "cuda:90": "wgmma", "cuda:100": "tcgen05", "hip": "mfma"}; the highest that fits counts.
    options: further launch options, such as launch_cooperative_grid; AMD GPUs are launched without maxnreg.
    backends: where dispatch can choose it: all of "cuda" or "hip", or single architectures such as "sm_90".
    optional: dispatch looks at the compiled code, and does without it where it spills.
    """

    name: str  # "<op>[...]", unique
    kernel: Any  # a @triton.jit function
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    claims: dict[str, str] = field(default_factory=dict)
    divisible: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    backends: tuple[str, ...] = ("cuda", "hip")
    optional: bool = False

    def claim(self, backend: str, capability: int = 0) -> str | None:
        """The instruction claimed on "hip", or on "cuda" of a compute capability such as 90."""
        if backend == "hip":
            return self.claims.get("hip")
        levels = [int(key[5:]) for key in self.claims if key.startswith("cuda:") and int(key[5:]) <= capability]
        return self.claims[f"cuda:{max(levels)}"] if levels else None
