"""Training: the two loops, what surrounds them, and their parts."""
