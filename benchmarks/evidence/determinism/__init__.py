"""The same bits: on every run, alone and in any batch, on any number of threads; and what permuting tokens does."""

from .report import section

__all__ = ["section"]
