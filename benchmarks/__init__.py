"""The commands that the figures of README.md and docs/ come from: `python -m benchmarks.NAME`, in the repository."""
