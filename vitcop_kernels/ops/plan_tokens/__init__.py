from .op import plan_tokens

__all__ = ["plan_tokens"]
