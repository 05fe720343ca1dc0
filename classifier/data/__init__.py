"""Datasets: where they come from, their columns, their splits, and how their images are read."""
