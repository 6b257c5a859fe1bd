"""Training: the only layer that imports osstorchconnector; of the others only `api` imports torch."""

import os

# OpenMP reads it when torch is imported. By default its threads spin for milliseconds while they wait for each other,
# and take that time from readers, server or screen on the same cores (2.2 instead of 0.8 s of CPU time for a step on
# two busy cores). A value that the user set is kept.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
