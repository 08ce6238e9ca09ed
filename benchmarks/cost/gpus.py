"""Facts about GPUs from their makers' datasheets, and what had to be assumed."""

from dataclasses import dataclass

ASSUMED = (
    "Assumed, and no datasheet's: launch_us (from one kernel of a CUDA graph to the next), barrier_us (a grid barrier "
    "through L2), latency_us (a first load that misses L2, to a store; 0.3 where a barrier's data is in L2), step_us "
    "(one dependent step of a single program), l2_gbs (what L2 serves to all SMs), that one multiprocessor can draw "
    "twice its share of bandwidth, that matrix units reach 70 % of their rate and memory 85 % of its bandwidth, and "
    "that a multiprocessor holds 4 programs of vic_cluster's one launch at tile 32 and 2 at tile 64 (where the launch "
    "does not fit, the phases are launched one by one)."
)


@dataclass(frozen=True)
class Gpu:
    name: str
    source: str
    sms: int  # multiprocessors, or compute units
    memory_gbs: float  # GB/s
    tflops: dict[str, float]  # dense, by unit: bf16 and tf32 matrix units, fp32 and fp64 without them
    l2_mb: float
    l2_gbs: float  # assumed
    launch_us: float = 1.3  # assumed
    barrier_us: float = 1.2  # assumed
    latency_us: float = 0.8  # assumed
    l2_latency_us: float = 0.3  # assumed
    step_us: float = 0.15  # assumed
    draw: float = 2.0  # assumed: what one multiprocessor takes of bandwidth, over its fair share
    matrix_share: float = 0.7  # assumed
    memory_share: float = 0.85  # assumed
    hip: bool = False

    def rate(self, unit: str) -> float:
        """FLOPs a microsecond that a kernel can be expected to reach."""
        return self.tflops[unit] * 1e6 * (self.matrix_share if unit in ("bf16", "tf32") else 1.0)

    def peak(self, unit: str) -> float:
        return self.tflops[unit] * 1e6


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            "A100", "NVIDIA A100 datasheet, SXM 80 GB", 108, 2039,
            {"bf16": 312, "tf32": 156, "fp32": 19.5, "fp64": 9.7}, 40, 4000,
        ),
        Gpu(
            "H100", "NVIDIA H100 datasheet, SXM; half of its sparse rates", 132, 3350,
            {"bf16": 989, "tf32": 494, "fp32": 67, "fp64": 34}, 50, 5500,
        ),
        Gpu(
            "H200", "NVIDIA H200 datasheet, SXM; half of its sparse rates", 132, 4800,
            {"bf16": 989, "tf32": 494, "fp32": 67, "fp64": 34}, 50, 5500,
        ),
        Gpu(
            "B200", "NVIDIA DGX B200 datasheet, an eighth of it; half of its sparse rates", 148, 8000,
            {"bf16": 2250, "tf32": 1125, "fp32": 75, "fp64": 37}, 126, 9000,
        ),
        Gpu(
            "MI300X", "AMD Instinct MI300X data sheet", 304, 5300,
            {"bf16": 1307, "tf32": 653, "fp32": 163, "fp64": 81.7}, 4, 6500, launch_us=3.0, barrier_us=2.5, hip=True,
        ),
        Gpu(
            "RTX 4090", "NVIDIA Ada GPU architecture whitepaper; bf16 with fp32 accumulation", 128, 1008,
            {"bf16": 165, "tf32": 82.6, "fp32": 82.6, "fp64": 1.29}, 72, 4500,
        ),
    )
}  # fmt: skip


# What the drivers call the very boards of the datasheets above.
NAMES = {
    "A100": ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
    "H100": ("NVIDIA H100 80GB HBM3",),
    "H200": ("NVIDIA H200",),
    "B200": ("NVIDIA B200",),
    "MI300X": ("AMD Instinct MI300X", "AMD Instinct MI300X OAM"),
    "RTX 4090": ("NVIDIA GeForce RTX 4090",),
}


def gpu_named(name: str) -> Gpu | None:
    """The entry that a device's own name means, or None: relatives (GH200, H100 PCIe, a slice) have other figures."""
    return next((GPUS[key] for key, names in NAMES.items() if name in names), None)
