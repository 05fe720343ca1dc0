"""Metrics of the library `evaluate`, as a module of our own: loaded by path, so that nothing is downloaded.

It computes with scikit-learn. `evaluate.load("accuracy")` would fetch its code from the Hub at run time.
"""

import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parent


def library() -> ModuleType:
    """The installed library `evaluate`, which the script evaluate.py at the root shadows for whoever starts there."""
    root = FOLDER.parents[2]
    shadowed = [entry for entry in sys.path if Path(entry).resolve() == root]
    script = sys.modules.get("evaluate")
    if script is not None and Path(script.__file__).resolve() == root / "evaluate.py":
        del sys.modules["evaluate"]
    sys.path[:] = [entry for entry in sys.path if entry not in shadowed]
    try:
        import evaluate
    finally:
        sys.path[:0] = shadowed
    return evaluate


def load(name: str):
    """The metric in this folder's `name`.py, an `evaluate.Metric` whose `compute` takes predictions and references."""
    return library().load(str(FOLDER / f"{name}.py"))
