"""LLaVA-1.5: one image is one tile of the vision tower, whose patches are the visual tokens."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .base import Removable, VisualTokens
from .tower import TileTokens, TowerAdapter, TowerRun


@dataclass
class ClipTokens(TileTokens):
    """Implements `TowerTokens`: nothing stands between the tower's layer and the projector."""

    output: Tensor | None = None  # [n, N or 1+N, D] what the layer made of tiles; None: not what is projected

    @property
    def num_heads(self) -> int:
        return self.run.num_heads

    def states(self) -> Tensor:
        return self.arrange(self._output()[:, 1:] if self.run.has_cls else self._output())

    def cls_states(self) -> Tensor | None:
        return self._output()[:, 0] if self.run.has_cls else None

    def _output(self) -> Tensor:
        if self.output is None:
            raise NotImplementedError(
                "vision_feature_layer: expected one layer, for a method that works before the projector, got several"
            )
        return self.output


class LlavaAdapter(TowerAdapter):
    def project(self, states: Tensor) -> Tensor:
        projected: Tensor = self.owner.multi_modal_projector(states)
        return projected

    def watch(self, tower_outputs: list[VisualTokens]) -> Iterable[Removable]:
        def keep_output(module: nn.Module, args: Any, output: Any) -> None:
            self._output = output[0] if isinstance(output, tuple) else output

        yield self.layer.register_forward_hook(keep_output)
        yield from super().watch(tower_outputs)

    def tokens(self, run: TowerRun) -> TileTokens:
        output, self._output = self._output, None
        plain = vars(super().tokens(run))
        return ClipTokens(**plain, output=output if isinstance(self.config.vision_feature_layer, int) else None)

    _output: Tensor | None = None  # of the tower's run in progress
