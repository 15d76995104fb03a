"""Tuned models on disk, and what uses them."""
