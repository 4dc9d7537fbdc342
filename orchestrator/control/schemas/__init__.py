"""What the API takes and gives, as OpenAPI shows it: a module per subject.

What planner and nodes answer is handed through unread: these say its shape, tests hold it to them.
"""
