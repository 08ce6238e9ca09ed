from .op import prune_sequence

__all__ = ["prune_sequence"]
