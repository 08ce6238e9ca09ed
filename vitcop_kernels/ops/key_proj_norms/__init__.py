from .op import key_proj_norms

__all__ = ["key_proj_norms"]
