"""The benchmark of a bucket's endpoints, and the limits it compares them with."""
