from .op import segment_mean_backward

__all__ = ["segment_mean_backward"]
