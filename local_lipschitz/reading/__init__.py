"""From an nn.Module to a graph of named layers.

read.py: the one way in.
tracer.py: runs a module once on a symbol, and records which functions it calls on what.
symbol.py: the symbol that stands for a tensor, and the recording.
modules.py: the tree of modules: names, wrappers, what must be put back.
arguments.py: how torch's functions take their arguments.
function_table.py: what each torch function is, by the handlers in the files *_functions.py:
    affine_functions.py, product_functions.py, arithmetic_functions.py, rearranging_functions.py,
    separable_functions.py, activation_functions.py, smooth_functions.py, maximum_functions.py,
    constant_functions.py.
onnx_file.py, onnx_operators.py: an ONNX file as such a module.
folding.py: diagonal maps into the affine layers before them; what the output does not need is left out.
checks.py: what must hold of the numbers of a module and of its graph.
hooks.py: running a module with its hooks.
comparison.py: the module run for real beside the graph.
"""
