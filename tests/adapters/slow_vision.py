"""The visual tokens of each model family from scratch: which patches each is made of, worked out one by one.

Of the model only weights, the tower's hidden states, the projector and the configuration are used.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Picture:
    """An image as the processor cuts it: the base picture, then `rows * columns` tiles, or nothing else."""

    pixels: Tensor  # [1 + rows * columns, 3, s, s]
    size: tuple[int, int]  # height and width of the original
    rows: int = 0
    columns: int = 0


@dataclass
class Media:
    pictures: list[Picture]
    videos: list[Tensor]  # [frames, 3, s, s]

    def __len__(self) -> int:
        return len(self.pictures) + len(self.videos)

    def to(self, dtype: torch.dtype) -> "Media":
        pictures = [Picture(p.pixels.to(dtype), p.size, p.rows, p.columns) for p in self.pictures]
        return Media(pictures, [video.to(dtype) for video in self.videos])


@dataclass
class Seen:
    """One visual token."""

    hidden: Tensor  # [C]
    feature: Tensor  # [D]
    saliency: float
    place: tuple[float, float]
    part: int
    state: Tensor | None = None  # of the tower, before the projector; None: a line break


@dataclass
class Patch:
    state: Tensor  # of the tower, before the projector
    feature: Tensor
    saliency: float


def placeholders(model: Any) -> dict[int, str]:
    ids = {kind: getattr(model.config, f"{kind}_token_id", None) for kind in ("image", "video")}
    return {token: kind for kind, token in ids.items() if token is not None}


OTHERS: dict[str, Callable[[Any, Any], dict[str, list[list[Seen]]]]] = {}
"""`see` of families whose tower is another, by `config.model_type`."""


def see(model: Any, media: Any) -> dict[str, list[list[Seen]]]:
    """The visual tokens of each image and of each video."""
    if model.config.model_type in OTHERS:
        return OTHERS[model.config.model_type](model, media)
    found: dict[str, list[list[Seen]]] = {"image": [], "video": []}
    if isinstance(media, Tensor):
        found["image"] = [plain_image(model, tile) for tile in media]
    elif media is not None:
        found["image"] = [anyres_image(model, picture) for picture in media.pictures]
        found["video"] = [video(model, frames) for frames in media.videos]
    return found


def look(model: Any, tile: Tensor) -> list[Patch]:
    """The patches of one tile, in raster order."""
    tower, chosen = model.model.vision_tower, model.config.vision_feature_layer
    root = getattr(tower, "vision_model", tower)
    states = tower(tile[None], output_hidden_states=True).hidden_states
    layer = root.encoder.layers[chosen]
    normed = layer.layer_norm1(states[chosen - 1][0])
    attention, special = layer.self_attn, int(hasattr(root.embeddings, "class_embedding"))
    query = attention.q_proj(normed).view(len(normed), attention.num_heads, -1)
    key = attention.k_proj(normed)
    keys = key.view(query.shape)
    received = torch.zeros(len(normed))
    asking = [0] if special else range(len(normed))
    for row in asking:
        for head in range(attention.num_heads):
            received += (keys[:, head] @ query[row, head] / math.sqrt(query.shape[-1])).float().softmax(0)
    if not special:
        received /= len(normed) * attention.num_heads
    return [Patch(states[chosen][0, i], key[i], float(received[i])) for i in range(special, len(normed))]


def project(model: Any, state: Tensor) -> Tensor:
    projected: Tensor = model.model.multi_modal_projector(state[None])[0]
    return projected


def side_of(model: Any) -> int:
    vision = model.config.vision_config
    return int(vision.image_size // vision.patch_size)


def plain_image(model: Any, tile: Tensor) -> list[Seen]:
    side = side_of(model)
    return [
        Seen(project(model, p.state), p.feature, p.saliency, (i // side / side, i % side / side), 0, p.state)
        for i, p in enumerate(look(model, tile))
    ]


def line_break(model: Any, like: Seen, part: int) -> Seen:
    nothing = torch.full_like(like.feature, math.nan)
    return Seen(model.model.image_newline, nothing, math.nan, (math.nan, math.nan), part)


def anyres_image(model: Any, picture: Picture) -> list[Seen]:
    """The base picture, then the plane of the tiles without its padding, a line break after each row."""
    side, rows, columns = side_of(model), picture.rows, picture.columns
    tiles = [plain_image(model, tile) for tile in picture.pixels]
    tokens, breaks = tiles[0], 1 + rows * columns
    if not rows:
        return [*tokens, line_break(model, tokens[0], breaks)]
    plane = [
        [tiles[1 + (r // side) * columns + c // side][(r % side) * side + c % side] for c in range(columns * side)]
        for r in range(rows * side)
    ]
    for r, line in enumerate(plane):
        for c, token in enumerate(line):
            token.place = (r / side, c / side)  # in the plane, for now

    height, width = picture.size
    if width / height > columns / rows:
        cut = (rows * side - int(round(height * columns * side / width, 7))) // 2
        plane = plane[cut : len(plane) - cut]
    else:
        cut = (columns * side - int(round(width * rows * side / height, 7))) // 2
        plane = [line[cut : len(line) - cut] for line in plane]

    if model.config.model_type == "llava_onevision":
        most = int(model.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(len(plane) * len(plane[0]) / (most * side * side))
        if ratio > 1.1:
            plane = resize(plane, int(len(plane) // ratio), int(len(plane[0]) // ratio))
    for line in plane:
        for token in line:
            r, c = token.place
            token.part = 1 + int(r) * columns + int(c)
            token.place = (r - int(r), c - int(c))
        tokens = [*tokens, *line, line_break(model, line[0], breaks)]
    return tokens


def blend(tokens: list[Seen], weights: list[float]) -> Seen:
    """A weighted sum of tokens."""
    pairs = list(zip(tokens, weights, strict=True))
    hidden = sum((w * t.hidden.float() for t, w in pairs), torch.zeros(())).to(tokens[0].hidden.dtype)
    feature = sum((w * t.feature.float() for t, w in pairs), torch.zeros(())).to(tokens[0].feature.dtype)
    saliency = sum(w * t.saliency for t, w in pairs)
    place = sum(w * t.place[0] for t, w in pairs), sum(w * t.place[1] for t, w in pairs)
    state = sum((w * t.state for t, w in pairs if t.state is not None), torch.zeros(()))
    return Seen(hidden, feature, saliency, place, tokens[0].part, state)


def resize(plane: list[list[Seen]], height: int, width: int) -> list[list[Seen]]:
    """Bilinear, pixel centres at halves."""

    def taps(size: int, new: int) -> list[tuple[int, int, float]]:
        found = []
        for i in range(new):
            at = max((i + 0.5) * size / new - 0.5, 0.0)
            found.append((int(at), min(int(at) + 1, size - 1), at - int(at)))
        return found

    out = []
    for top, bottom, y in taps(len(plane), height):
        line = []
        for left, right, x in taps(len(plane[0]), width):
            corners = [plane[top][left], plane[top][right], plane[bottom][left], plane[bottom][right]]
            line.append(blend(corners, [(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x]))
        out.append(line)
    return out


def video(model: Any, frames: Tensor) -> list[Seen]:
    """Each frame's patches, pooled; in LLaVA-OneVision a line break at the end."""
    side, tokens = side_of(model), []
    for number, frame in enumerate(frames):
        patches = look(model, frame)
        if model.config.model_type == "llava_onevision":
            square = plain_image(model, frame)
            plane = [square[r * side : (r + 1) * side] for r in range(side)]
            pooled = [token for line in resize(plane, math.ceil(side / 2), math.ceil(side / 2)) for token in line]
        else:  # pooled before the projector
            pooled = []
            for r in range(0, side - 1, 2):
                for c in range(0, side - 1, 2):
                    four = [(r, c), (r, c + 1), (r + 1, c), (r + 1, c + 1)]
                    raw = [
                        Seen(p.state, p.feature, p.saliency, (y / side, x / side), 0, p.state)
                        for (y, x) in four
                        for p in [patches[y * side + x]]
                    ]
                    token = blend(raw, [0.25] * 4)
                    token.hidden = project(model, token.hidden)
                    pooled.append(token)
        for token in pooled:
            token.part = number
        tokens += pooled
    if model.config.model_type == "llava_onevision":
        tokens.append(line_break(model, tokens[0], len(frames)))
    return tokens
