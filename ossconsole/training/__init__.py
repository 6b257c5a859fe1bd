"""Training: the only layer that imports torch and osstorchconnector."""

import os

# Read by OpenMP when torch is loaded. By default its threads spin for milliseconds where they wait for each other; with
# readers, server or screen on the same cores they spin in those processes' time (seen: 2.2 instead of 0.8 s of
# processor time for a step on two busy cores). Who sets it otherwise is heeded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
