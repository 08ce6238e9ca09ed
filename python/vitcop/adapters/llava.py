"""LLaVA-1.5: one image is one tile of the vision tower, whose patches are the visual tokens."""

from dataclasses import dataclass

from torch import Tensor

from .tower import TileTokens, TowerAdapter, TowerRun


@dataclass
class ClipTokens(TileTokens):
    """A tile is an image: its [CLS] is the image's."""

    def cls_states(self) -> Tensor | None:
        return self.run.states()[:, 0] if self.run.has_cls else None


class LlavaAdapter(TowerAdapter):
    def tokens(self, run: TowerRun) -> TileTokens:
        return ClipTokens(**vars(super().tokens(run)))
