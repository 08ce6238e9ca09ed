"""A vLLM plugin: images as a constant number of tokens, chosen and merged by `vitcop.VisionOnly` before the decoder.

`--hf-overrides '{"vitcop": {"tokens": 64}}'` asks for it; docs/serving.md has the rest. Nothing here is imported
without vLLM, and vLLM's own models stay what they are unless a configuration has that key.
"""

from .plugin import register

__all__ = ["register"]
