"""Whom the runner's HTTP clients trust."""

import ssl

import httpx


def authorities(url: str) -> ssl.SSLContext:
    """Those who vouch for the server at this address. An address without TLS needs none; left to itself, a client loads them all the
    same, which takes 20 ms, and once more for each proxy that its environment names."""
    if url.startswith("https:"):
        return httpx.create_ssl_context()
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
