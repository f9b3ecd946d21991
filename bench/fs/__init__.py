"""The mount against the local file system and against other mounts; see `__main__.py`."""
