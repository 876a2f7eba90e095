"""The composition root: it alone names adapters."""
