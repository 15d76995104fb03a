"""The script that draws charts (Vega, Vega-Lite, Vega-Embed), from vl-convert's bundle; knows no chart and no page.

Making the bundle takes seconds, so it is kept in the cache, named by vl-convert's version and sealed by its sha256.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from importlib.metadata import version

from keepsight.core import UserError
from keepsight.core.files import cache_directory, write_text

_NOTICE = (
    "/*! Vega, Vega-Lite and Vega-Embed: Copyright University of Washington Interactive Data Lab and contributors, "
    "BSD 3-Clause License; with parts of D3: Copyright Mike Bostock, ISC License. */\n"
)


def script() -> str:
    """JavaScript that defines `vegaEmbed`; may stand inside of a script element. A damaged copy in the cache is made again."""
    path = cache_directory() / "vega" / f"vl-convert-{version('vl-convert-python')}.js"
    with contextlib.suppress(OSError, ValueError):
        digest, _, kept = path.read_bytes().partition(b"\n")
        if hashlib.sha256(kept).hexdigest().encode() == digest.strip():
            return kept.decode("utf-8")
    made = _make()
    with contextlib.suppress(UserError):  # a page does not fail because the cache cannot be written
        write_text(path, f"{hashlib.sha256(made.encode()).hexdigest()}\n{made}")
    return made


def _make() -> str:
    bundle = _bundle().replace("\r\n", "\n").replace("\r", "\n")
    # what would end the element, or begin a comment in it; inside of texts and patterns the backslash changes nothing
    inside = bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--").replace("\0", "\\0")
    return f"{_NOTICE}(() => {{\n{inside}\n}})();"


@functools.cache
def _bundle() -> str:
    import vl_convert

    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
