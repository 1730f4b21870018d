"""The joint bound: the whole network as one operator."""
