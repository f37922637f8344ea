"""Stage 2, which is ConNR: group concordance, its boundary filter, and optional terms."""
