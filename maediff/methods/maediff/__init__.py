"""The paper, in reading order: partition, mae, loss, reconstructor, layout, sliding."""
