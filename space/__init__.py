"""The web page and its API: the only package that imports gradio."""

import os
import tempfile
from pathlib import Path

from classifier.environment import prepare_own_server

# All of this is set before gradio is imported. Uploads have their own folder, because cleanup.py deletes everything old
# in it, and each user of a machine has one, because they can't write into another's.
user = f"-{os.getuid()}" if hasattr(os, "getuid") else ""
uploads = Path(tempfile.gettempdir()) / f"classifier-uploads{user}"
os.environ["GRADIO_TEMP_DIR"] = os.environ.get("GRADIO_TEMP_DIR") or str(uploads)
prepare_own_server(os.environ.get("GRADIO_SERVER_NAME", ""))
# By default gradio sums up the last 10,000 calls with pandas at the end of each call.
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000000")
