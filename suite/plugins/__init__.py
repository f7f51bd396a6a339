"""Package whose modules are the files in the folders of SUITE_PLUGINS and `--plugins`.

Objects of plug-in classes reach worker processes by these module names.
"""

from suite import registry

__path__ = [str(folder) for folder in registry.folders()]
