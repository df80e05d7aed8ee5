"""Evaluation: metrics and the tasks that use them. Each evaluation is a small generator of (name, value)."""
