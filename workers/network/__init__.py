"""Private networks on a node and in the proxies: one port (workers.ports.TunnelPlane), two backends that know nothing of each other."""
