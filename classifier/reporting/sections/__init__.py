"""The sections of the report: what is said, and the figures and tables that show it."""
