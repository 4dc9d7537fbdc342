"""A logistic risk score in numpy, fitted while the module loads, as small models in production often are."""

import hashlib

import numpy
import numpy.polynomial
import numpy.random
import numpy.testing
from requests.utils import default_headers, urlparse

FEATURES = 8


def fit(samples=4000, steps=120):
    """Gradient descent on a fixed, made-up history."""
    source = numpy.random.default_rng(7)
    truth = source.normal(size=FEATURES)
    history = source.normal(size=(samples, FEATURES))
    outcome = (history @ truth + source.normal(scale=0.5, size=samples) > 1.0).astype(float)
    weights, bias = numpy.zeros(FEATURES), 0.0
    for _ in range(steps):
        wrong = sigmoid(history @ weights + bias) - outcome
        weights -= 0.5 * history.T @ wrong / samples
        bias -= 0.5 * wrong.mean()
    numpy.testing.assert_array_less(numpy.abs(weights), 50.0)
    return weights, bias


def sigmoid(value):
    return 1 / (1 + numpy.exp(-value))


WEIGHTS, BIAS = fit()


def handle(event, context):
    host = urlparse(f"https://{event['customer'].partition('@')[2]}").hostname or ""
    digest = hashlib.sha256(f"{host}{event['country']}".encode()).digest()
    features = numpy.frombuffer(digest[:FEATURES], dtype=numpy.uint8) / 128.0 - 1.0
    pieces = sum(line["quantity"] for line in event["lines"])
    score = float(sigmoid(features @ WEIGHTS + BIAS + numpy.log1p(pieces) / 10 - 1.5))
    return {"score": round(min(score, 0.6), 4), "agent": default_headers()["User-Agent"], "host": host}
