"""Where requests come in: the sockets and certificates of the host, and the way of a request to a sandbox or to the API."""
