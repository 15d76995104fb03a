"""Measurements: predictions in, `Result` records out. Knows no method."""
