from concurrent.futures import ThreadPoolExecutor


def handle(event, context):
    """Who ordered, and whether there is enough of it: both asked at once."""
    with ThreadPoolExecutor(2) as pool:
        who, left = pool.map(lambda name: context.invoke(name, event), ("customer", "stock"))
    return {"for": who["name"], "item": left["item"], "accepted": left["left"] >= event.get("count", 1)}
