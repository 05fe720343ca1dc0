"""The web page and its API: the only place that imports gradio."""

import os
import tempfile
from pathlib import Path

# Before gradio reads it: a folder of its own for uploads, because all that is old in it is deleted (cleanup.py).
os.environ.setdefault("GRADIO_TEMP_DIR", str(Path(tempfile.gettempdir()) / "classifier-uploads"))
# It would sum up the last 10,000 calls, with pandas, at the end of each.
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000000")
