"""The whole method on a network of your own, in one screen:  python simple_example.py"""

import torch
from torch import nn

from local_lipschitz import certified_radius, global_bound, joint_bound, local_bound, verify

torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(1, 6, 5, stride=2),  # (B, 1, 28, 28) -> (B, 6, 12, 12)
    nn.ReLU(),
    nn.MaxPool2d(2),  # (B, 6, 6, 6)
    nn.Flatten(),
    nn.Linear(216, 60),
    nn.ReLU(),
    nn.Linear(60, 10),
).eval()
x0 = torch.rand(1, 1, 28, 28)

# How far can the output move? ‖f(x) − f(x0)‖ ≤ L ‖x − x0‖ for all x with ‖x − x0‖ ≤ ε.
eps = 0.1
print(f"global bound             {float(global_bound(net, x0)):.4f}")
print(f"local bound at ε = {eps}   {float(local_bound(net, x0, eps)):.4f}")
print(f"several ε at once        {local_bound(net, x0, torch.tensor([0.01, 0.1, 1.0])).value.tolist()}")

# Which radius is proved free of adversarial examples? The class cannot change while ε L(ε) < δ/√2, with δ the
# difference of the two largest outputs. Bisect for the largest such ε; the lower end of the bracket is certified.
top, second = net(x0)[0].double().topk(2).values.tolist()
low, high = 1e-6, 1e3
while high > 1.001 * low:
    eps = (low * high) ** 0.5
    certified = eps * float(local_bound(net, x0, eps)) < (top - second) / 2**0.5
    low, high = (eps, high) if certified else (low, eps)
print(f"certified radius         {low:.4f}")

# The whole network as one operator, and each class by itself: tighter, and one call each.
print(f"joint bound at ε = 0.1   {float(joint_bound(net, x0, 0.1)):.4f}")
print(f"certified radius         {float(certified_radius(net, x0).radius):.4f} (pairwise, local bound)")
print(f"certified radius         {float(certified_radius(net, x0, joint_bound, rtol=0.02).radius):.4f} (joint bound)")

# Is one ball free of adversarial examples? Proved, refuted by a counterexample, or unknown after time_limit seconds.
result = verify(net, x0, 2 * low, time_limit=20)
print(f"at twice that radius     {result.verdict[0]} (by {result.stage[0]})")
