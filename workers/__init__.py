"""One node: drivers, standbys, code tiers, the guest runtime, and the RPC by which other floors reach it."""
