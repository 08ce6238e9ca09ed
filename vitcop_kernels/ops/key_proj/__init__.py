from .op import key_proj

__all__ = ["key_proj"]
