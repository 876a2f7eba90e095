"""Where repositories come from: what a session may name, and bundles that clients have sent."""
