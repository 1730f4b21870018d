"""From an nn.Module to a graph of named layers.

read: the one way in. tracer: runs a module once on a symbol (symbol) and turns each call into operations of the graph
by the function table (function_table; affine_functions, nonlinear_functions, tensor_functions). folding: batch norm
into the layer before it. checks: what must hold of the module, and that the graph computes what it computes.
"""
