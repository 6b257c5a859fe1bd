"""The ranks of a run: what they are, what they tell each other, and the processes of this machine's other ranks."""
