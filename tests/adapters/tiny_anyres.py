"""Small random models of the LLaVA families whose images come in tiles, and prompts that mix images and videos."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from slow_vision import Media, Picture
from tiny_llava import IMAGE, PAD, VOCABULARY, pad, spread
from torch import Tensor

VIDEO, FRAMES = 98, 3

# Height, width, rows and columns of tiles. Each loses padding: rows of a wide image, columns of the others.
SHAPES = [(14, 46, 1, 2), (50, 14, 2, 1), (30, 18, 2, 2)]


@dataclass(frozen=True)
class AnyRes:
    """What differs from family to family."""

    family: str  # "LlavaNext"
    config: tuple[tuple[str, Any], ...] = ()
    decoder: str = "Llama"
    side: int = 3  # patches along a tile
    siglip: bool = False
    video_tokens: int = 0  # of a video of FRAMES frames; 0: the family takes none
    onevision: bool = False  # only the image of a prompt with one alone comes in tiles

    def build(
        self,
        *,
        layers: int = 6,
        key_heads: int = 4,
        attention: str = "sdpa",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> Any:
        torch.manual_seed(seed)
        vision: dict[str, Any] = dict(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=4 * self.side,
            patch_size=4,
        )
        text: dict[str, Any] = dict(
            vocab_size=VOCABULARY,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=key_heads,
            max_position_embeddings=512,
            pad_token_id=PAD,
            bos_token_id=1,
            eos_token_id=None,
        )
        if self.decoder == "Mistral":
            text["sliding_window"] = None
        if self.siglip:
            vision_config: Any = transformers.SiglipVisionConfig(**vision, vision_use_head=False)
        else:
            vision_config = transformers.CLIPVisionConfig(**vision, projection_dim=16)
        options = dict(self.config)
        if self.video_tokens:
            options["video_token_index"] = VIDEO
        config = getattr(transformers, f"{self.family}Config")(
            vision_config=vision_config,
            text_config=getattr(transformers, f"{self.decoder}Config")(**text),
            image_token_index=IMAGE,
            vision_feature_layer=-1 if self.siglip else -2,
            pad_token_id=PAD,
            image_grid_pinpoints=[[4 * self.side * r, 4 * self.side * c] for _, _, r, c in SHAPES],
            tie_word_embeddings=False,
            **options,
        )
        kind = getattr(transformers, f"{self.family}ForConditionalGeneration")
        model = kind._from_config(config, attn_implementation=attention)
        spread(model)
        with torch.no_grad():
            model.lm_head.weight[VIDEO] = 0
        return model.to(dtype).eval()

    def prompt(self, images: int, seed: int = 0, text: int = 5, videos: int = 0) -> tuple[list[int], Media]:
        """Token ids with videos and images in turns among text, and their pixels."""
        generator = torch.Generator().manual_seed(1000 * images + 100 * videos + seed)

        def words(n: int) -> list[int]:
            return torch.randint(2, VIDEO, (n,), generator=generator).tolist()

        def noise(tiles: int) -> Tensor:
            return torch.randn(tiles, 3, 4 * self.side, 4 * self.side, generator=generator)

        ids, media = [1, *words(2)], Media([], [])
        for number in range(max(images, videos)):
            if number < videos:
                media.videos.append(noise(FRAMES))
                ids += [VIDEO] * self.video_tokens + words(1)
            if number < images:
                height, width, rows, columns = SHAPES[(number + seed) % len(SHAPES)]
                if images > 1 and self.onevision:
                    rows = columns = 0
                media.pictures.append(Picture(noise(1 + rows * columns), (height, width), rows, columns))
                ids += [IMAGE] * self.image_tokens(media.pictures[-1]) + words(2)
        return ids + words(text), media

    def image_tokens(self, picture: Picture) -> int:
        """By the model's own function, as a processor knows it; the slow reference makes each token on its own."""
        options = {"vision_aspect_ratio": "anyres_max_2"} if self.onevision else {}
        if not self.onevision:
            options["vision_feature_select_strategy"] = "default"
        tiles = [torch.zeros(len(picture.pixels), self.side**2, 1)]
        packed, _ = _packer(self).pack_image_features(
            tiles, torch.tensor([picture.size]), image_newline=torch.zeros(1), **options
        )
        return len(packed[0])

    def batch(
        self, prompts: Sequence[tuple[list[int], Media | None]], side: str = "left", dtype: torch.dtype = torch.float32
    ) -> dict[str, Any]:
        """Prompts padded to one batch, as a processor returns them."""
        inputs = pad([ids for ids, _ in prompts], side)
        given = [media or Media([], []) for _, media in prompts]
        pictures = [picture for media in given for picture in media.pictures]
        videos = [video for media in given for video in media.videos]
        if pictures:
            most = max(len(p.pixels) for p in pictures)
            pixels = torch.zeros(len(pictures), most, *pictures[0].pixels.shape[1:])
            for row, picture in zip(pixels, pictures, strict=True):
                row[: len(picture.pixels)] = picture.pixels
            inputs["pixel_values"] = pixels.to(dtype)
            inputs["image_sizes"] = torch.tensor([p.size for p in pictures])
            if self.onevision:
                inputs["batch_num_images"] = torch.tensor([len(media.pictures) for media in given if media.pictures])
        if videos:
            inputs["pixel_values_videos"] = torch.stack(videos).to(dtype)
        return inputs


@functools.cache
def _packer(kind: AnyRes) -> Any:
    return kind.build(layers=1).model


NEXT = AnyRes("LlavaNext")
NEXT_MISTRAL = AnyRes("LlavaNext", decoder="Mistral")
NEXT_VIDEO = AnyRes("LlavaNextVideo", side=4, video_tokens=4 * FRAMES, config=(("spatial_pool_stride", 2),))
ONEVISION = AnyRes(
    "LlavaOnevision",
    decoder="Qwen2",
    siglip=True,
    onevision=True,
    video_tokens=4 * FRAMES + 1,
    config=(("vision_aspect_ratio", "anyres_max_2"),),  # images of four tiles are shrunk
)
