"""keepsight adapts a pretrained vision model to your own images with few labels, and shows what it gained."""
