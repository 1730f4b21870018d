"""What the methods share.

preactivation  bounds of every pre-activation on that set
reduced        the network with its uncertain neurons only
certify        what turns a solver's answer into an upper bound
sdp            cvxpy and its solvers
sampled        lower bounds to check against
script         the command line, time limits, tables and files
"""
