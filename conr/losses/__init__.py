"""Losses as pure functions of tensors. Those that only group concordance needs are in conr.refinement."""
