from .op import compact_sequence

__all__ = ["compact_sequence"]
