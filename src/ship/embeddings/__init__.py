"""Adapters of embedding models. They need the extra ``semantic``."""
