"""vitcop: visual-token pruning for large vision-language models.

with vitcop.prune(model, vitcop.ViTCoP(retain=64)) as report:
    model.generate(**inputs)
"""

from importlib.metadata import PackageNotFoundError, version

from .engine.report import Report
from .methods import DivPrune, FastV, PyramidDrop, Random, SparseVLM, Uniform, VisionOnly, VisionZip, ViTCoP
from .session import attach, detach, prune

__all__ = [
    "DivPrune", "FastV", "PyramidDrop", "Random", "Report", "SparseVLM", "Uniform", "ViTCoP", "VisionOnly",
    "VisionZip", "__version__", "attach", "detach", "prune",
]  # fmt: skip

try:
    __version__ = version("vitcop")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"
