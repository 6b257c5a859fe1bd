"""One command that checks the engine on a GPU and measures it: `python -m tests.benchmarks.gpu --minutes 8`."""
