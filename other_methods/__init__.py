"""Other methods that bound Lipschitz constants of ReLU networks, one a file; compare.py runs them all.

seqlip      AutoLip and SeqLip            global         l2
liplt       LipLT                         global         l2
aol         row sums of |WᵀW|             global         l2
lipsdp      LipSDP                        global, local  l2
eclipse     ECLipsE and ECLipsE-Fast      global         l2
eclipse_passes, the fast form for layers that are no matrices
lipopt      LiPopt                        global, local  l∞, scalar outputs
lipmip      LipMIP                        local, exact   l∞ and l1
recurjac    RecurJac and FastLip          local          l1, l2, l∞

They read a network as linear maps (Network, common/network.py) or as matrices (Chain, chain.py), and the inputs as a
Ball or a Box; what they share else is in common/.
"""
