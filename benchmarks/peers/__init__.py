"""What people would run instead, set up by name from the public registries and started on the loopback."""
