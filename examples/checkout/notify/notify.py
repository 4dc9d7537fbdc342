"""Builds the message and the web hook that would carry it. Nothing is sent: functions have no network unless asked for."""

import email.policy
from email.message import EmailMessage

import markdown
import requests
from email_validator import EmailNotValidError, validate_email
from jinja2 import Environment
from pydantic import BaseModel, Field

ENVIRONMENT = Environment(autoescape=True)
FOOTER = ENVIRONMENT.from_string("{{ body }}\n\n--\n*The shop*, for {{ customer }}")
TEXT = markdown.Markdown(extensions=["extra", "toc", "tables"])


class Message(BaseModel):
    customer: str
    subject: str = Field(max_length=200)
    body: str


def handle(event, context):
    wanted = Message.model_validate(event)
    try:
        customer = validate_email(wanted.customer, check_deliverability=False).normalized
    except EmailNotValidError as error:
        return {"told": None, "problem": str(error)}
    words = FOOTER.render(customer=customer, body=wanted.body)
    message = EmailMessage(policy=email.policy.SMTP)
    message["To"], message["From"], message["Subject"] = customer, "shop@example.org", wanted.subject
    message.set_content(words)
    message.add_alternative(TEXT.reset().convert(words), subtype="html")
    hook = requests.Session().prepare_request(requests.Request("POST", "https://mail.example/send", data=bytes(message)))
    return {"told": customer, "message_bytes": len(hook.body)}
