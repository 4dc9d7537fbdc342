"""The gift card: a picture with the amount, drawn by Pillow over a pattern made in numpy."""

import datetime
import hashlib
import io

import numpy
import qrcode
from babel.dates import format_date
from babel.numbers import format_currency
from jinja2 import Environment
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

Image.init()
FONT = ImageFont.load_default(28)
WORDS = Environment(autoescape=True).from_string("A present for you: {{ amount }} in the shop, until {{ until }}")


def pattern(order, width=480, height=270):
    """Waves of colour, the same for the same order."""
    source = numpy.random.default_rng(list(order.encode()))
    across, down = numpy.meshgrid(numpy.linspace(0, 6, width), numpy.linspace(0, 3, height))
    waves = [numpy.sin(across * f + p) * numpy.cos(down * f - p) for f, p in source.uniform(0.5, 2.5, size=(3, 2))]
    return Image.fromarray(((numpy.stack(waves, axis=-1) + 1) * 110).astype(numpy.uint8), "RGB")


def handle(event, context):
    amount = format_currency(event["total"], "EUR", locale="de")
    until = datetime.date.today() + datetime.timedelta(days=3 * 365)
    code = qrcode.make(event["order"], box_size=3, border=2).convert("RGB")
    card = ImageOps.expand(pattern(event["order"]).filter(ImageFilter.GaussianBlur(2)), 8, "white")
    shade = Image.new("RGB", card.size, (30, 30, 30))
    ImageDraw.Draw(shade).rectangle((60, 110, card.width - 60, 175), fill=(0, 0, 0))
    card = ImageChops.subtract(card, shade)
    ImageDraw.Draw(card).text((card.width / 2, 142), amount, font=FONT, anchor="mm", fill="white")
    card.paste(code, (20, 20))
    out = io.BytesIO()
    card.save(out, "PNG")
    words = WORDS.render(amount=amount, until=format_date(until, "long", locale="de"))
    told = context.invoke("notify", {"customer": event["customer"], "subject": "Your gift card", "body": words})
    return {
        "paper": "giftcard",
        "png_bytes": len(out.getvalue()),
        "sha256": hashlib.sha256(out.getvalue()).hexdigest()[:12],
        **told,
    }
