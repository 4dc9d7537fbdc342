"""The RPC between the platform's processes: messages, and the connection that carries them."""
