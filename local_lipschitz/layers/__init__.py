"""The network as linear maps and nonlinear units.

layer.py: one layer: a linear map with its bias, a sum, a concatenation, or a nonlinear function.
stage.py: everything affine between two nonlinear layers.
graph.py: a network as layers that know their inputs by name, and its stages.
linear_maps.py: weights: dense, convolution, diagonal, one matrix an axis.
shifted_products.py: convolutions in float64, as matrix products.
products.py: products with constant matrices along some of the dimensions.
rearranging.py: every output is one of the inputs, or 0.
activations.py: elementwise functions by their anchored secant slopes.
smooth_activations.py: the same of smooth ones, convex or concave between known points.
smooth_functions.py, gated_functions.py: their values, slopes and averages, without cancellation.
max_pooling.py: max pooling by its windows.
changes.py: how far outputs move from x0 to x0 + δ, with a proven error.
short_sums.py: long float32 sums in blocks.
rounding.py: what rounding may have changed in nominal values and pulled-back rows.
"""
