"""Cluster images without labels: Contextually Affinitive Neighborhood Refinery (ConNR, NeurIPS 2023)."""

__version__ = "0.1.0"
