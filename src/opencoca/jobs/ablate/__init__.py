"""Ablations: the paper's Table 8, and what the paper leaves open, as runs of small models on real pictures."""
