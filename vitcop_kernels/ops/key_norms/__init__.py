from .op import key_norms

__all__ = ["key_norms"]
