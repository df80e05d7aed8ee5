"""Ranks: who they are, what they tell each other, and how they share a model. Without torchrun there is one."""
