"""The network near x0 as one linear operator with kinks."""
