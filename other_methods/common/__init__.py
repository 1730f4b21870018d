"""What the methods share.

network        a network as linear maps that are applied, and as matrices where these fit
windows        the part of a network that few of its elements read or reach
preactivation  bounds of every pre-activation on a set of inputs, by matrices
preactivation_passes, the same by passes, for convolutions and max pooling
jacobian_bounds  elementwise bounds of Jacobians: RecurJac's and FastLip's
leading        leading singular pairs, and what is left without them
reduced        the network with its uncertain neurons only
certify        what turns a solver's answer into an upper bound
sdp            cvxpy and its solvers
sampled        lower bounds to check against
script         the command line, time limits, tables and files
"""
