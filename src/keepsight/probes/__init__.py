"""Probes: tasks that the tuning never saw, asked of a frozen backbone's features. One file each."""
