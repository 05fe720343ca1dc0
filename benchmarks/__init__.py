"""Commands that measure the figures in README.md and docs/: `python -m benchmarks.NAME`, in the repository's folder."""
