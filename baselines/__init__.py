"""Rival methods, one file each; the file's presence registers it. `_template.py` is the one to copy."""
