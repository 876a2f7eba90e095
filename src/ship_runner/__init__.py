"""The process in a sandbox that drives the coding agent and reports to the control plane."""

__version__ = "0.1.0"
