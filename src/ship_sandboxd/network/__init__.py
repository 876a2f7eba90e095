"""The way out of a sandbox: rules, names and addresses, the proxy, and the path of programs that know of no proxy."""
