"""Rival methods, one file each.

The file's presence registers the method; copy `_template.py` to add one.
"""
