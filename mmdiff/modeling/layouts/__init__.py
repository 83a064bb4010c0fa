"""Published families, a file each: how it is recognised, its settings, its tensors' names."""
