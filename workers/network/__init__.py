"""A node's ways into private networks: one plane per backend."""
