"""From work to microseconds: floor, estimate, and which term binds."""

from dataclasses import dataclass

from .cases import Case
from .gpus import Gpu
from .work import Chip, Work, work_of


@dataclass(frozen=True)
class Estimate:
    """Microseconds in a CUDA graph, caches cold for inputs. An estimate on paper."""

    us: float
    floor_us: float  # one launch, the exchanges that the definition demands, and the slower of memory and arithmetic
    terms: dict[str, float]  # of `us`: launches, barriers, latency, memory, L2, arithmetic, serial
    work: Work

    @property
    def binds(self) -> str:
        return max(self.terms, key=lambda name: self.terms[name])


def estimate(case: Case, gpu: Gpu) -> Estimate:
    work = work_of(case, Chip(gpu.sms, gpu.hip))
    bandwidth, l2 = gpu.memory_gbs * 1e3 * gpu.memory_share, gpu.l2_gbs * 1e3  # bytes a microsecond
    terms = dict.fromkeys(("launches", "barriers", "latency", "memory", "L2", "arithmetic", "serial"), 0.0)
    for step in work.steps:
        terms["barriers" if step.barrier else "launches"] += gpu.barrier_us if step.barrier else gpu.launch_us
        terms["latency"] += gpu.l2_latency_us if step.barrier else gpu.latency_us
        terms["serial"] += step.serial * gpu.step_us
        share = min(1.0, step.programs / gpu.sms)  # few programs reach a share of the device
        drawn = min(1.0, gpu.draw * step.programs / gpu.sms)
        times = {
            "memory": step.bytes / (bandwidth * drawn),
            "L2": step.l2_bytes / (l2 * drawn),
            "arithmetic": sum(count / (gpu.rate(unit) * share) for unit, count in step.flops.items()),
        }
        slowest = max(times, key=lambda name: times[name])  # the others hide behind it
        terms[slowest] += times[slowest]
    return Estimate(sum(terms.values()), _floor(work, gpu), terms, work)


def _floor(work: Work, gpu: Gpu) -> float:
    """At datasheet rates."""
    memory = work.bytes / (gpu.memory_gbs * 1e3)
    arithmetic = max((count / gpu.peak(unit) for unit, count in work.flops.items()), default=0.0)
    return gpu.launch_us + work.exchanges * min(gpu.barrier_us, gpu.launch_us) + max(memory, arithmetic)
