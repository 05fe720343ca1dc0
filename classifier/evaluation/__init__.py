"""Predictions of a split and what is measured on them: accuracy, calibration, OOD detection, speed and memory."""
