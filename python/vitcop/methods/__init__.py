"""Pruning methods, one file each."""

from .base import Choice, Context, Method, Plan, Program, Stage
from .divprune import DivPrune
from .fastv import FastV
from .pyramiddrop import PyramidDrop
from .random import Random
from .sparsevlm import SparseVLM
from .uniform import Uniform
from .vision_only import VisionOnly
from .visionzip import VisionZip
from .vitcop import ViTCoP

METHODS: dict[str, type[Method]] = {
    "vitcop": ViTCoP,
    "fastv": FastV,
    "pyramiddrop": PyramidDrop,
    "sparsevlm": SparseVLM,
    "visionzip": VisionZip,
    "divprune": DivPrune,
    "vision_only": VisionOnly,
    "random": Random,
    "uniform": Uniform,
}
"""Every method by the name that the command line knows it by; each takes `retain` or `retention`."""

__all__ = [
    "METHODS", "Choice", "Context", "DivPrune", "FastV", "Method", "Plan", "Program", "PyramidDrop", "Random",
    "SparseVLM", "Stage", "Uniform", "ViTCoP", "VisionOnly", "VisionZip",
]  # fmt: skip
