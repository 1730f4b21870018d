"""The bound of the paper: a product of layer norms."""
