"""JSON of any length, one element at a time: what a file holds of an array is never all in memory.

A file is one document or several (one a line, mostly). Of an object that holds the array one asks for, its elements are
given; any other object is an element itself, and so is each element of an array at the top. Elements are decoded by the
standard library's scanner as soon as the text read so far holds all of them.
"""

import codecs
import json
from collections.abc import Callable, Iterator
from json.decoder import JSONDecodeError
from typing import Any, BinaryIO, TypeVar

import msgspec

from tracing.formats.errors import FormatError

CHUNK = 1 << 18
MAX_ELEMENT = 64 << 20
"""Characters of one element (a trace, a request), which has to be in memory whole."""

Shape = TypeVar("Shape")

_SPACE = " \t\r\n"
_TAIL = 16  # an error this near to the end of the text may be one that more text mends


class Elements:
    """The elements of a stream of JSON. `where()` says how far it is, for messages."""

    def __init__(self, stream: BinaryIO, member: str, form: str) -> None:
        """`member`: the name of the array, in an object at the top, whose elements are meant; `form`: for messages."""
        self._read: Callable[[int], bytes] = stream.read
        self._bytes = codecs.getincrementaldecoder("utf-8-sig")()
        self._scan = json.JSONDecoder().raw_decode
        self._member = member
        self._form = form
        self._text = ""
        self._at = 0
        self._ended = False
        self._lines = 1  # number of the line on which _text begins
        self._column = 1  # and of the character in it

    def __iter__(self) -> Iterator[Any]:
        while self._next():
            first = self._text[self._at]
            if first == "[":
                yield from self._array()
            elif first == "{":
                yield from self._object()
            else:
                raise self.error(f"{self._text[self._at : self._at + 20]!r} is neither an object nor an array")

    def where(self) -> str:
        return self._place(self._at)

    def error(self, what: str) -> FormatError:
        return FormatError(f"{self._form}: {self.where()}: {what}")

    def converted(self, element: Any, shape: type[Shape]) -> Shape:
        """The element that was just given, as that. Raises FormatError."""
        try:
            return msgspec.convert(element, shape)
        except (msgspec.ValidationError, UnicodeEncodeError, OverflowError) as error:  # lone surrogates; numbers no float holds
            raise self.error(f"before here: {error}") from error

    # -- text

    def _place(self, at: int) -> str:
        lines = self._text.count("\n", 0, at)
        column = at - self._text.rfind("\n", 0, at) if lines else self._column + at
        return f"line {self._lines + lines}, character {column}"

    def _more(self) -> None:
        """Reads on; what is behind is given up, so that places in the text are others then."""
        lines = self._text.count("\n", 0, self._at)
        self._lines += lines
        self._column = self._at - self._text.rfind("\n", 0, self._at) if lines else self._column + self._at
        left = self._text[self._at :]
        size = max(CHUNK, len(left))
        if size > MAX_ELEMENT:
            raise FormatError(
                f"{self._form}: line {self._lines}, character {self._column}: one element is longer than {MAX_ELEMENT >> 20} MB"
            )
        try:
            read = self._read(size)
            self._ended = not read
            self._text = left + self._bytes.decode(read, final=self._ended)
        except UnicodeDecodeError as error:
            raise FormatError(f"{self._form}: after line {self._lines + left.count(chr(10))}: not UTF-8 text") from error
        self._at = 0

    def _next(self) -> bool:
        """Goes to the next character that is no space. False at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return True
            if self._ended:
                return False
            self._more()

    def _take(self, *wanted: str) -> str:
        if not self._next():
            raise self.error(f"it ends where {' or '.join(wanted)} is expected")
        found = self._text[self._at]
        if found not in wanted:
            raise self.error(f"{' or '.join(wanted)} is expected, not {self._text[self._at : self._at + 20]!r}")
        self._at += 1
        return found

    def _value(self) -> Any:
        if not self._next():
            raise self.error("it ends too early")
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except JSONDecodeError as error:
                mended = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _TAIL
                if mended and not self._ended:
                    self._more()
                    continue
                raise FormatError(f"{self._form}: {self._place(error.pos)}: not JSON: {error.msg}") from error
            except RecursionError as error:
                raise self.error("nested too deeply") from error
            except ValueError as error:  # a number of thousands of digits
                raise self.error(str(error)[:100]) from error
            if end >= len(self._text) - 2 and not self._ended:  # a number may go on: "1", "1.", "1e-"
                self._more()
                continue
            self._at = end
            return value

    # -- structure

    def _array(self) -> Iterator[Any]:
        self._at += 1
        if self._next() and self._text[self._at] == "]":
            self._at += 1
            return
        while True:
            yield self._value()
            if self._take(",", "]") == "]":
                return

    def _object(self) -> Iterator[Any]:
        """What an object at the top holds besides the array that is meant is left out, or is the element."""
        self._at += 1
        members: dict[str, Any] = {}
        streamed = False
        if self._next() and self._text[self._at] == "}":
            self._at += 1
            return
        while True:
            name = self._value()
            if not isinstance(name, str):
                raise self.error("a name in quotes is expected")
            self._take(":")
            if name == self._member and self._next() and self._text[self._at] == "[":
                streamed = True
                yield from self._array()
            else:
                members[name] = self._value()
            if self._take(",", "}") == "}":
                break
        if not streamed and members.keys() != {self._member}:  # {"data": null} holds nothing
            yield members
