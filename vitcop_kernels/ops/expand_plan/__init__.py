from .op import expand_plan

__all__ = ["expand_plan"]
