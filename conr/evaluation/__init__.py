"""Evaluation of embeddings: assignments to clusters, agreement with labels, and scores without labels."""
