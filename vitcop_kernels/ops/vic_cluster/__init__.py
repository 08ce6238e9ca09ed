from .op import num_centers_for, vic_cluster

__all__ = ["num_centers_for", "vic_cluster"]
