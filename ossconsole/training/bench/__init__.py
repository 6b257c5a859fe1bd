"""The benchmark of a bucket's endpoints, and the limits of the setup that it compares them with."""
