"""For tests alone: let torchvision from PyPI be imported beside a CPU build of torch.

Its compiled operators are built against CUDA and do not load there, and its Python then fails on operators that nobody
has declared. They are declared here, without an implementation: vLLM imports torchvision for picture formats, and no
test calls them. Python imports this module by itself, in every process whose PYTHONPATH has this folder; it waits for
the first import of torchvision, and does nothing where the operators load.
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from typing import Any

OPERATORS = (
    "nms",
    "qnms",
    "roi_align",
    "qroi_align",
    "_roi_align_backward",
    "roi_pool",
    "_roi_pool_backward",
    "ps_roi_align",
    "_ps_roi_align_backward",
    "ps_roi_pool",
    "_ps_roi_pool_backward",
    "deform_conv2d",
    "_deform_conv2d_backward",
)


class Declare:
    """Runs before the first import of torchvision."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            declare(Path(spec.origin).parent)
        return None


def declare(folder: Path) -> None:
    import torch

    for library in folder.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
            return
        except OSError:
            continue
    global _library  # declarations last as long as this object
    _library = torch.library.Library("torchvision", "DEF")
    for name in OPERATORS:
        _library.define(f"{name}(Tensor x) -> Tensor")


sys.meta_path.insert(0, Declare())  # type: ignore[arg-type]
