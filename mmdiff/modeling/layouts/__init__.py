"""Published families: how each is recognised, its tensors' names and its settings."""
