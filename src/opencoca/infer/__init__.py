"""Inference: generation and the Predictor."""
