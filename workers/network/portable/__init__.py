"""The portable backend: streams forwarded over one mutually authenticated TLS connection per node, Vpc and proxy."""
