"""What of a backbone is trained: its own weights (`freeze`), updates of them (`lora`, `orthogonal`), parts beside them (`kept`)."""
