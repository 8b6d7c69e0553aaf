"""The page (Gradio)."""
