"""What readers of formats raise."""


class FormatError(ValueError):
    """What was given does not have the form it should; the message names the place and the field."""
