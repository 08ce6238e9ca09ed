"""The ops at the shapes that models give them: what is estimated, and what the GPU report measures."""

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """One op, or one stage of the method made of several, at one shape."""

    op: str
    dims: dict[str, int] = field(hash=False)
    dtype: str = "bfloat16"
    where: str = ""  # which model has the shape
    target_us: float | None = None  # of the project, on an H200, in a CUDA graph

    @property
    def shape(self) -> str:
        return " ".join(f"{name}={size}" for name, size in self.dims.items())

    @property
    def name(self) -> str:
        return f"{self.op} {self.shape} {self.dtype}"

    @property
    def itemsize(self) -> int:
        return {"bfloat16": 2, "float16": 2, "float32": 4}[self.dtype]

    def __getitem__(self, dim: str) -> int:
        return self.dims[dim]


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    return 1 << max(0, (n - 1).bit_length())


def centers_of(n: int) -> int:
    return math.ceil(0.15 * n)


def _vic(batch: int, n: int, where: str, target: float | None, width: int = 1024) -> Case:
    return Case("vic_cluster", {"B": batch, "N": n, "D": width, "K": centers_of(n)}, where=where, target_us=target)


def real_cases() -> list[Case]:
    """Shapes of LLaVA-1.5-7B (576 visual tokens), LLaVA-NeXT (2880) and a video of 32 frames (4608)."""
    return [
        _vic(1, 172, "576 tokens, retention 1/9", 12),
        _vic(1, 288, "576 tokens, retention 1/3", 12),
        _vic(1, 864, "2880 tokens, retention 1/9", 18),
        _vic(1, 4608, "32 frames as one sample", 110),
        _vic(8, 288, "eight images", 18),
        Case("vic_cluster_varlen", {"B": 5, "T": 864, "L": 576, "D": 1024, "K": 70}, where="2880 tokens, tile by tile"),
        Case("vic_cluster_varlen", {"B": 32, "T": 1382, "L": 144, "D": 1024, "K": 18}, where="video, frame by frame"),
        Case("attention_saliency", {"B": 1, "H": 16, "N": 577, "d": 64}, where="[CLS] row of CLIP", target_us=6),
        Case("attention_saliency", {"B": 1, "H": 32, "N": 633, "d": 128}, where="last prompt row"),
        Case("select_tokens", {"B": 1, "N": 576, "K": 172}, "float32", "Stage I"),
        Case("select_tokens", {"B": 1, "N": 2880, "K": 864}, "float32", "Stage I of 2880 tokens"),
        Case("key_norms", {"B": 1, "H": 32, "N": 288, "d": 128}, where="keys from the cache"),
        Case("key_proj_norms", {"B": 1, "N": 288, "C": 4096, "J": 4096, "H": 32}, where="keys of the pruned layer"),
        Case("key_proj_norms", {"B": 1, "N": 864, "C": 5120, "J": 5120, "H": 40}, where="LLaVA-NeXT-13B"),
        Case("key_proj", {"B": 1, "N": 288, "C": 4096, "J": 4096, "H": 32}, where="keys wanted as well"),
        Case("plan_tokens", {"B": 1, "N": 288, "K": 52, "S": 253}, "float32", "retention 1/3"),
        Case("plan_tokens", {"B": 1, "N": 864, "K": 104, "S": 386}, "float32", "2880 tokens, retention 1/9"),
        Case("segment_mean", {"B": 1, "N": 288, "C": 4096, "S": 253}, where="retention 1/3"),
        Case("segment_mean", {"B": 1, "N": 864, "C": 5120, "S": 386}, where="LLaVA-NeXT-13B, retention 1/9"),
        Case("segment_mean_backward", {"B": 1, "N": 288, "C": 4096, "S": 253}, where="training, retention 1/3"),
        Case("expand_plan", {"B": 1, "n": 345, "V": 288, "S": 253}, "float32", "Stage II, with 57 tokens of text"),
        Case("compact_sequence", {"B": 1, "n": 345, "V": 288, "S": 253, "C": 4096, "d": 128}, where="Stage II"),
        Case(
            "stage2", {"B": 1, "N": 288, "T": 57, "C": 4096, "H": 32, "K": 52, "S": 253},
            where="norms of cached keys, plan, merge, whole sequence", target_us=15,
        ),
        Case(
            "stage3", {"B": 1, "N": 77, "T": 57, "C": 4096, "H": 32, "K": 15},
            where="norms of cached keys, choice, whole sequence", target_us=8,
        ),
        Case(
            "selection", {"M": 576, "T": 57, "H": 16, "D": 1024, "C": 4096, "N1": 172, "K": 21, "N2": 77, "N3": 15},
            where="LLaVA-1.5-7B, retention 1/9, keys projected", target_us=50,
        ),
        Case(
            "selection", {"M": 2880, "T": 57, "H": 16, "D": 1024, "C": 4096, "N1": 864, "K": 70, "N2": 386, "N3": 77},
            where="LLaVA-NeXT-7B, retention 1/9, keys projected", target_us=120,
        ),
    ]  # fmt: skip


def tiny_cases() -> list[Case]:
    """Every op once, at sizes that a CPU does in no time: for the dry run."""
    return [
        Case("vic_cluster", {"B": 1, "N": 24, "D": 16, "K": 4}, target_us=12),
        Case("vic_cluster_varlen", {"B": 2, "T": 23, "L": 15, "D": 16, "K": 2}),
        Case("attention_saliency", {"B": 1, "H": 2, "N": 17, "d": 16}, target_us=6),
        Case("select_tokens", {"B": 1, "N": 24, "K": 8}, "float32"),
        Case("key_norms", {"B": 1, "H": 2, "N": 12, "d": 16}),
        Case("key_proj_norms", {"B": 1, "N": 12, "C": 32, "J": 32, "H": 2}),
        Case("key_proj", {"B": 1, "N": 12, "C": 32, "J": 32, "H": 2}),
        Case("plan_tokens", {"B": 1, "N": 24, "K": 4, "S": 10}, "float32"),
        Case("segment_mean", {"B": 1, "N": 24, "C": 32, "S": 10}),
        Case("segment_mean_backward", {"B": 1, "N": 24, "C": 32, "S": 10}),
        Case("expand_plan", {"B": 1, "n": 30, "V": 24, "S": 10}, "float32"),
        Case("compact_sequence", {"B": 1, "n": 30, "V": 24, "S": 10, "C": 32, "d": 16}),
        Case("stage2", {"B": 1, "N": 24, "T": 6, "C": 32, "H": 2, "K": 4, "S": 10}, target_us=15),
        Case("stage3", {"B": 1, "N": 10, "T": 5, "C": 32, "H": 2, "K": 4}, target_us=8),
        Case(
            "selection", {"M": 36, "T": 5, "H": 2, "D": 16, "C": 32, "N1": 24, "K": 4, "N2": 10, "N3": 4}, target_us=50
        ),
    ]


def parts(case: Case) -> list[Case]:
    """The ops that a stage is made of, in order; `gather` is torch's index_select of rows.

    The small ops of torch that count the tokens of each tile (with several tiles) are left out.
    """
    c, kind = case.dims, case.dtype

    def compacted(batch: int, visual: int, kept: int, head: int) -> list[Case]:
        """The whole sequence, text too."""
        sizes = {"B": batch, "n": visual + c["T"], "V": visual, "S": kept}
        return [
            Case("expand_plan", sizes, "float32"),
            Case("compact_sequence", {**sizes, "C": c["C"], "d": head}, kind),
        ]

    if case.op == "stage2":
        return [
            Case("key_norms", {"B": c["B"], "H": c["H"], "N": c["N"], "d": c["C"] // c["H"]}, kind),
            Case("plan_tokens", {"B": c["B"], "N": c["N"], "K": c["K"], "S": c["S"]}, "float32"),
            *compacted(c["B"], c["N"], c["S"], c["C"] // c["H"]),
        ]
    if case.op == "stage3":
        return [
            Case("key_norms", {"B": c["B"], "H": c["H"], "N": c["N"], "d": c["C"] // c["H"]}, kind),
            Case("select_tokens", {"B": c["B"], "N": c["N"], "K": c["K"]}, "float32"),
            *compacted(c["B"], c["N"], c["K"], c["C"] // c["H"]),
        ]
    if case.op == "selection":
        heads = max(1, c["C"] // 128)
        tiles, head = max(1, c["M"] // 576), c["C"] // heads
        cluster = Case("vic_cluster", {"B": 1, "N": c["N1"], "D": c["D"], "K": c["K"]}, kind)
        if tiles > 1:
            sizes = {"B": tiles, "T": c["N1"], "L": c["M"] // tiles, "D": c["D"], "K": c["K"]}
            cluster = Case("vic_cluster_varlen", sizes, kind)
        return [
            Case(
                "attention_saliency", {"B": tiles, "H": c["H"], "N": c["M"] // tiles + 1, "d": c["D"] // c["H"]}, kind
            ),
            Case("select_tokens", {"B": 1, "N": c["M"], "K": c["N1"]}, "float32"),
            *compacted(1, c["M"], c["N1"], head),
            Case("gather", {"N": c["N1"], "C": c["D"]}, kind),
            cluster,
            Case("gather", {"N": c["N1"], "C": c["C"]}, kind),
            Case("key_proj_norms", {"B": 1, "N": c["N1"], "C": c["C"], "J": c["C"], "H": heads}, kind),
            Case("plan_tokens", {"B": 1, "N": c["N1"], "K": c["K"] * tiles, "S": c["N2"]}, "float32"),
            *compacted(1, c["N1"], c["N2"], head),
            Case("gather", {"N": c["N2"], "C": c["C"]}, kind),
            Case("key_proj_norms", {"B": 1, "N": c["N2"], "C": c["C"], "J": c["C"], "H": heads}, kind),
            Case("select_tokens", {"B": 1, "N": c["N2"], "K": c["N3"]}, "float32"),
            *compacted(1, c["N2"], c["N3"], head),
        ]
    return [case]
