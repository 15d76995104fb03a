"""What a person reads: made from `Result` records alone, so that it can be made again from a finished run."""
