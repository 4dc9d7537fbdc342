"""Private networks on a node and in the proxies: one port (workers.ports.TunnelPlane), two backends beside each other."""
