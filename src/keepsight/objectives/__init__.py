"""Losses as pure functions: tensors in, scalar out. They know no network and hold no state."""
