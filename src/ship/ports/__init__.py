"""What Ship asks of the world, as Protocols; the contracts are in their docstrings."""
