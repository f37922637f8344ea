"""Neighborhoods: Euclidean, contextually affinitive (ConAff), the border between clusters, and how pure they are."""
