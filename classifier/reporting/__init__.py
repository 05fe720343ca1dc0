"""Reports on models: figures, the report, slides, and the model card."""
