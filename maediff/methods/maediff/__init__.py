"""The paper, in reading order: partition, mae, reconstructor, loss, layout, sliding."""
