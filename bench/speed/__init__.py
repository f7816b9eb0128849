"""How fast the compiler itself is, as ratios that hold on any machine: `python -m bench.speed`.

Every quantity is divided by one that was measured beside it: what a plain `torch.sort`, forward
pass or `import torch` takes, round by round, in one run.
"""
