"""What keeps a sandbox in: the backends, its root and disk, its limits, the process that starts it."""
