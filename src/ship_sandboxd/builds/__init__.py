"""Templates and how they are built: the steps of a caller, each in a sandbox, on a Debian root; kept as layers."""
