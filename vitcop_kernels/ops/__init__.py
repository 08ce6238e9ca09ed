"""One folder per op: `reference.py` the truth, `op.py` checks, fake, autograd, registration and the public function."""

from .attention_saliency import attention_saliency
from .key_norms import key_norms
from .key_proj import key_proj
from .key_proj_norms import key_proj_norms
from .plan_tokens import plan_tokens
from .segment_mean import segment_mean
from .select_tokens import select_tokens
from .vic_cluster import num_centers_for, vic_cluster
from .vic_cluster_varlen import vic_cluster_varlen

__all__ = [
    "attention_saliency",
    "key_norms",
    "key_proj",
    "key_proj_norms",
    "num_centers_for",
    "plan_tokens",
    "segment_mean",
    "select_tokens",
    "vic_cluster",
    "vic_cluster_varlen",
]
