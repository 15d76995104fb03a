"""Features of frozen backbones: extraction, the on-disk cache, and the choice of the readout."""
