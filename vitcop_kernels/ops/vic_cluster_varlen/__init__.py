from .op import vic_cluster_varlen

__all__ = ["vic_cluster_varlen"]
