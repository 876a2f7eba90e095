"""The OpenCode agent, driven over the HTTP interface of ``opencode serve``."""
