"""Zips as users and attackers send them, for hypothesis: good ones, and ones wrong in every way a zip can be."""

import io
import stat
import struct
import warnings
import zipfile

from hypothesis import strategies as st

HANDLER = b"def handle(event, context):\n    return event\n"
MODULE = "shop.py"
LINK = (stat.S_IFLNK | 0o777) << 16
NAMES = (
    "SHOP.PY", "shop.py/", "shop/__init__.py", "requirements.txt", "a/b/c.py", "a/b", "/etc/passwd", "../up.py",
    "a/../../up.py", "./here.py", "a//b.py", "a/./b.py", "C:/x.py", "c:x", "a\\b.py", "nul\0.py", "new\nline.py",
    "bell\x07.py", "caf\u00e9.py", "cafe\u0301.py", "STRASSE.py", "stra\u00dfe.py", "\u202egpj.py", "\ufeffbom.py",
    "\U0001f600.py", "x" * 255 + ".py", "d/" * 600 + "x", " ", ".", "..", "", "con", "-rf", "a b.py", "__pycache__/shop.pyc",
    "inner.zip", "tail.", "tail ", "\ud7ff.py", "\x7f", "~", "*",
)  # fmt: skip
WAYS = ("cut", "flip", "flip", "before", "behind", "encrypted", "counted", "placed", "sized")
CONTENTS = (
    HANDLER,
    b"",
    b"requests==2.32.3\n",
    b"-r /etc/passwd\n",
    b"../../etc/passwd",
    b"shop.py",
    b"\0" * 4096,
    b"PK\x03\x04",
)


def entry_names() -> st.SearchStrategy[str]:
    return st.sampled_from(NAMES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """One zip: good code, or some entries and perhaps damage."""
    if draw(st.booleans()):
        return good(draw(st.integers(0, 3)))
    entries = draw(st.lists(st.tuples(entry_names(), contents(), modes(), st.booleans()), max_size=6))
    if draw(st.booleans()):
        entries.insert(0, (MODULE, HANDLER, 0o644 << 16, True))
    return draw(damage(written(entries)))


def good(number: int = 0) -> bytes:
    """A package whose handler is `shop:handle`; another for each number."""
    return written([(MODULE, HANDLER + b"# %d\n" % number, 0o644 << 16, True)])


def contents() -> st.SearchStrategy[bytes]:
    return st.sampled_from(CONTENTS) | st.binary(max_size=200)


def modes() -> st.SearchStrategy[int]:
    """External attributes: mostly plain files, also links, devices, set-user-id."""
    kinds = (0o644, 0o755, 0o4755, 0)
    odd = (LINK, (stat.S_IFDIR | 0o755) << 16, (stat.S_IFCHR | 0o666) << 16, (stat.S_IFIFO | 0o666) << 16, 0xFFFFFFFF)
    return st.sampled_from([*((stat.S_IFREG | mode) << 16 for mode in kinds), *odd])


def written(entries: "list[tuple[str, bytes, int, bool]]") -> bytes:
    """`entries`: name, content, external attributes, deflated or stored."""
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as archive:
        warnings.simplefilter("ignore")  # a name twice is on purpose
        for name, content, attributes, deflated in entries:
            entry = zipfile.ZipInfo("x")
            entry.filename = name  # past what the constructor cleans away
            entry.external_attr = attributes
            entry.compress_type = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
            archive.writestr(entry, content)
    return out.getvalue()


@st.composite
def damage(draw: st.DrawFn, whole: bytes) -> bytes:
    """Half of them stay whole."""
    way = draw(
        st.sampled_from(["whole"] * 6 + ["cut", "flip", "flip", "before", "behind", "encrypted", "counted", "placed", "sized"])
    )
    content = bytearray(whole)
    end, central = whole.rfind(b"PK\x05\x06"), whole.rfind(b"PK\x01\x02")
    if way == "cut":
        return whole[: draw(st.integers(0, len(whole)))]
    if way == "flip":
        for _ in range(draw(st.integers(1, 4))):
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    elif way == "before":
        return draw(st.binary(max_size=64)) + whole
    elif way == "behind":
        return whole + draw(st.binary(max_size=64))
    elif way == "encrypted" and central >= 0:
        content[central + 8] |= 1
    elif way == "counted":
        struct.pack_into("<HH", content, end + 8, *draw(st.tuples(st.integers(0, 65535), st.integers(0, 65535))))
    elif way == "placed":
        struct.pack_into("<LL", content, end + 12, *draw(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))))
    elif way == "sized" and central >= 0:
        struct.pack_into("<LLL", content, central + 16, *draw(st.tuples(*[st.integers(0, 2**32 - 1)] * 3)))
    return bytes(content)
