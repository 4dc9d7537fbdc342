import time

time.sleep(0.12)  # what loading takes


def work(seconds):
    time.sleep(seconds)
    return "done"


def checkout(event, context):
    context.invoke_all([("inventory", event), ("pricing", event), ("fraud", event)])
    return context.invoke("payment", event)


def inventory(event, context):
    return work(0.02)


def pricing(event, context):
    return work(0.03)


def fraud(event, context):
    return work(0.04)


def payment(event, context):
    work(0.02)
    return context.invoke("giftcard" if event.get("gift") else "invoice", event)


def invoice(event, context):
    work(0.02)
    return context.invoke("notify", event)


def giftcard(event, context):
    work(0.01)
    return context.invoke("notify", event)


def notify(event, context):
    return work(0.01)


def report(event, context):
    raise ValueError("no figures for today")
