"""From an nn.Module to a graph of named layers."""
