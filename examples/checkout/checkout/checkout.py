"""Entry: checks the order, asks three services at once, charges, and hands over to what follows the payment."""

from decimal import Decimal
from typing import Annotated, Literal

import networkx
from pydantic import AwareDatetime, BaseModel, Field, ValidationError
from requests.structures import CaseInsensitiveDict


class Item(BaseModel):
    sku: Annotated[str, Field(pattern=r"^[A-Z]{3}-\d{3}$")]
    quantity: Annotated[int, Field(ge=1, le=99)]
    needs: list[str] = []


class Order(BaseModel):
    id: Annotated[str, Field(min_length=1, max_length=32)]
    customer: Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$")]
    country: Literal["DE", "FR", "GB", "US"] = "DE"
    gift: bool = False
    placed_at: AwareDatetime | None = None
    items: Annotated[list[Item], Field(min_length=1, max_length=50)]


def handle(event, context):
    try:
        order = Order.model_validate(event)
    except ValidationError as error:
        return {"accepted": False, "problems": [problem["msg"] for problem in error.errors()]}
    lines = [{"sku": item.sku, "quantity": item.quantity} for item in packing_order(order.items)]
    stock, price, risk = context.invoke_all(
        [
            ("inventory", {"lines": lines}),
            ("pricing", {"lines": lines, "country": order.country}),
            ("fraud", {"customer": order.customer, "country": order.country, "lines": lines}),
        ]
    )
    if stock["missing"] or risk["score"] > 0.9:
        return {"accepted": False, "missing": stock["missing"], "risk": risk["score"]}
    payment = context.invoke(
        "payment",
        {"order": order.id, "customer": order.customer, "gift": order.gift, "lines": price["lines"], "total": price["total"]},
    )
    labels = CaseInsensitiveDict({"X-Order": order.id, "X-Paid": payment["receipt"]["signature"][:12]})
    return {
        "accepted": True,
        "total": str(Decimal(price["total"])),
        "risk": risk["score"],
        "from": stock["from"],
        "labels": dict(labels),
        **payment["papers"],
    }


def packing_order(items):
    """What something stands on is packed first."""
    wanted = {item.sku: item for item in items}
    needs = networkx.DiGraph()
    needs.add_nodes_from(wanted)
    needs.add_edges_from((below, item.sku) for item in items for below in item.needs if below in wanted)
    return [wanted[sku] for sku in networkx.lexicographical_topological_sort(needs)]
