"""The network as linear maps and nonlinear units."""
