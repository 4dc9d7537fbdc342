"""What exists: tables and use cases (model, store), and the routes that gateways and planners hold (routes, watch)."""
