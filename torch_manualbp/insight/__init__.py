"""See the backpropagation."""
