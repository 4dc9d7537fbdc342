"""The kernel backend: VXLAN devices, policy routing and nftables in namespaces without names. Needs root."""
