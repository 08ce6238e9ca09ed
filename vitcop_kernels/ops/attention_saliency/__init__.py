from .op import attention_saliency

__all__ = ["attention_saliency"]
