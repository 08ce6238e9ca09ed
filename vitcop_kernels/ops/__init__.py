"""One folder per op: `reference.py` the truth, `op.py` checks, fake, autograd, registration and the public function."""

from .attention_saliency import attention_saliency
from .compact_sequence import compact_sequence
from .expand_plan import expand_plan
from .key_norms import key_norms
from .key_proj import key_proj
from .key_proj_norms import key_proj_norms
from .plan_tokens import plan_tokens
from .prune_sequence import prune_sequence
from .segment_mean import segment_mean
from .segment_mean_backward import segment_mean_backward
from .select_tokens import select_tokens
from .vic_cluster import num_centers_for, vic_cluster
from .vic_cluster_varlen import vic_cluster_varlen

__all__ = [
    "attention_saliency",
    "compact_sequence",
    "expand_plan",
    "key_norms",
    "key_proj",
    "key_proj_norms",
    "num_centers_for",
    "plan_tokens",
    "prune_sequence",
    "segment_mean",
    "segment_mean_backward",
    "select_tokens",
    "vic_cluster",
    "vic_cluster_varlen",
]
