"""Pruning methods, one file each."""

from .base import Context, Method, Plan, Program, Stage
from .vitcop import ViTCoP

__all__ = ["Context", "Method", "Plan", "Program", "Stage", "ViTCoP"]
