"""What of a backbone is trained: all of it (`freeze`), or low-rank updates of its attention (`lora`)."""
