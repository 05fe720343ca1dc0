"""Tests that run beside others, by pytest-xdist, leave them a core."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the commands that tests start
