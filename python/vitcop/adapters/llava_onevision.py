"""LLaVA-OneVision: AnyRes images, shrunk where they are large, and videos of pooled frames, seen by SigLIP."""

from torch import Tensor

from .llava_next_video import LlavaNextVideoAdapter


class LlavaOnevisionAdapter(LlavaNextVideoAdapter):
    """A token of a shrunk image has the saliency and the keys of the patches around its place, interpolated as it is,
    and belongs to the tile of that place. So are the states of the tower, and those of a video's pooled frames, though
    the model interpolates behind its projector: for them alone `project(states)` is not quite the token."""

    line_breaks = 1

    def pool(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.owner.apply_pooling(x)
        return pooled
