"""The methods. Each owns its heads and says its losses (or solves its own fit); none knows the trainer or the data."""
