"""The invoice: HTML by jinja2, PDF by reportlab."""

import hashlib
import io

from babel import Locale
from babel.numbers import format_currency
from jinja2 import Environment
from reportlab.graphics.barcode import code128
from reportlab.graphics.charts.barcharts import HorizontalBarChart
from reportlab.graphics.shapes import Drawing
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.lib.units import mm
from reportlab.platypus import Paragraph, SimpleDocTemplate, Spacer, Table

PAGE = Environment(autoescape=True).from_string(
    "<h1>Invoice {{ order }}</h1><table>{% for line in lines %}<tr><td>{{ line.sku }}</td><td>{{ line.quantity }}</td>"
    "<td>{{ '%.2f' % line.gross }}</td></tr>{% endfor %}</table><p>{{ total }} EUR</p>"
)
STYLES = getSampleStyleSheet()
WRITTEN_IN = Locale("de")


def euros(amount):
    return format_currency(amount, "EUR", locale=WRITTEN_IN)


def shares(amounts):
    """What each line adds, as bars."""
    chart = HorizontalBarChart()
    chart.data, chart.x, chart.y, chart.width, chart.height = [amounts], 10, 10, 300, 60
    drawing = Drawing(320, 80)
    drawing.add(chart)
    return drawing


def handle(event, context):
    html = PAGE.render(**event)
    out = io.BytesIO()
    rows = [["Item", "Pieces", "Price"], *([line["sku"], line["quantity"], euros(line["gross"])] for line in event["lines"])]
    SimpleDocTemplate(out, title=f"Invoice {event['order']}", invariant=1).build(
        [
            Paragraph(f"Invoice {event['order']}", STYLES["Title"]),
            Table(rows),
            Spacer(1, 5 * mm),
            Paragraph(f"Total {euros(event['total'])}", STYLES["Normal"]),
            shares([line["gross"] for line in event["lines"]]),
            code128.Code128(event["order"]),
        ]
    )
    told = context.invoke("notify", {"customer": event["customer"], "subject": f"Your invoice {event['order']}", "body": html})
    return {
        "paper": "invoice",
        "pdf_bytes": len(out.getvalue()),
        "sha256": hashlib.sha256(html.encode()).hexdigest()[:12],
        **told,
    }
