"""Metrics as classes of the library `evaluate`: `evaluate.load("accuracy")` would download its code at run time.

The scripts and pytest start with the repository first on `sys.path`, where `import evaluate` would find the script
evaluate.py. Importing this package makes it find the library, wherever Python was started.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import distribution


class LibraryFinder:
    """Finds `evaluate` where it is installed, and leaves all other modules to the finders that follow."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The library's spec, for `import evaluate` alone; its submodules are found in the library's own folder."""
        if name != "evaluate":
            return None
        return PathFinder.find_spec(name, [str(distribution(name).locate_file(""))])


sys.meta_path.insert(0, LibraryFinder)
