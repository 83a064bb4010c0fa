"""The model: towers, connectors and backbone, and its checkpoints."""
