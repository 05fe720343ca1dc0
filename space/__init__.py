"""The web page and its API: the only package that imports gradio."""

import os
import tempfile
from pathlib import Path

# Set before gradio is imported. Uploads have their own folder, because cleanup.py deletes everything old in it.
os.environ.setdefault("GRADIO_TEMP_DIR", str(Path(tempfile.gettempdir()) / "classifier-uploads"))
# By default gradio sums up the last 10,000 calls with pandas at the end of each call.
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000000")
