"""The panels that time this package against stock PyTorch."""
