from .op import select_tokens

__all__ = ["select_tokens"]
