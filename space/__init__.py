"""The web page and its API: the only place that imports gradio."""
