"""What a model gives for a split, and what is measured on that: accuracy, calibration, out-of-distribution, cost."""
