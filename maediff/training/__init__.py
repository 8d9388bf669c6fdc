"""Training: the stream of samples, the loop and its checkpoints."""
