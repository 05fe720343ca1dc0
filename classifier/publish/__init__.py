"""Publishing: a folder that loads anywhere, its upload to the Hub, and the app as a Space."""
