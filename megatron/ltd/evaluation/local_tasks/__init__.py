"""lm-eval's official tasks on local files: data from published files, overlays over the installed tasks."""
