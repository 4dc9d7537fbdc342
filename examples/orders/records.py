import database


def customer(event, context):
    return {"name": database.ask("GET", f"customer:{event['customer']}")}


def stock(event, context):
    return {"item": event["item"], "left": int(database.ask("GET", f"stock:{event['item']}"))}
