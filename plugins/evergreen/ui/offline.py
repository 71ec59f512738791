"""Great Expectations' stored pages as they read without a network: they take looks, icons and scripts
from other people's servers, which neither our policy nor a machine without a way out lets in.

What runs, loads or leads elsewhere is taken out, and with it what only worked by scripts; a small
style of ours takes the place of Bootstrap's.
"""

from __future__ import annotations

from html import escape
from html.parser import HTMLParser

#: Tags that are taken out with all that is in them; of those without an end, the tag alone.
OUT = {"script", "style", "noscript", "footer", "form", "button", "iframe", "object"}
VOID_OUT = {"link", "img", "base", "embed", "meta"}
LEADING = {"href", "xlink:href", "src", "srcset", "action", "formaction", "ping"}
STYLE = """<meta charset="utf-8"><style>
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem; color: #1f2933; background: #fff; overflow-wrap: anywhere; }
h1 { font-size: 1.3rem; } h2, h3, h4, h5, h6 { font-size: 1rem; margin: 1rem 0 0.4rem; }
ul, ol { padding-left: 1.2rem; } hr { border: 0; }
table { border-collapse: collapse; margin: 0.4rem 0 1rem; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.9rem 0.3rem 0; border-bottom: 1px solid #d9e2ec; }
.badge, code { background: #e9eef3; border-radius: 0.3rem; padding: 0 0.35rem; }
.alert { border-left: 4px solid #52606d; background: #f5f7fa; padding: 0.1rem 0.8rem; }
.fa-check-circle::before { content: "✓ met"; color: #0b6b3a; font-weight: 600; font-style: normal; }
.fa-times::before, .fa-times-circle::before { content: "✗ not met"; color: #b3261e; font-weight: 600; font-style: normal; }
.fa-exclamation-triangle::before { content: "! raised"; color: #8a4b00; font-weight: 600; font-style: normal; }
.cooltip .top, .navbar.sticky-top, .card:has(.btn-group-toggle), a[data-toggle] { display: none; }
</style>"""


def offline(page: bytes) -> bytes:
    """The page, with nothing in it that runs, loads, or leads out of it."""
    return "".join((*_read(page).kept, STYLE)).encode()


def links(page: bytes) -> list[str]:
    """Where a page leads besides itself, as paths beside it: a report's further pages."""
    return list(dict.fromkeys(_read(page).links))


def _read(page: bytes) -> _Reader:
    reader = _Reader()
    reader.feed(page.decode(errors="replace"))
    reader.close()
    return reader


class _Reader(HTMLParser):
    """Copies a page, but for what isn't to be in it."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.kept: list[str] = []
        self.links: list[str] = []
        self.within: list[str] = []  # tags that are taken out, from the outermost

    def keep(self, text: str) -> None:
        if not self.within:
            self.kept.append(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in OUT:
            self.within.append(tag)
        elif tag not in VOID_OUT:
            self.keep(self._tag(tag, attrs))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in OUT | VOID_OUT:
            self.keep(self._tag(tag, attrs))

    def handle_endtag(self, tag: str) -> None:
        if tag in OUT:
            if tag in self.within:
                del self.within[self.within.index(tag) :]
            return
        self.keep(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.keep(data)

    def handle_entityref(self, name: str) -> None:
        self.keep(f"&{name};")

    def handle_charref(self, name: str) -> None:
        self.keep(f"&#{name};")

    def handle_decl(self, decl: str) -> None:
        self.keep(f"<!{decl}>")

    def _tag(self, tag: str, attrs: list[tuple[str, str | None]]) -> str:
        told = [tag]
        for name, value in attrs:
            target = (value or "").strip()
            if name == "href" and "://" not in target and not target.startswith("#"):
                self.links.append(target)
            elsewhere = name in LEADING and not target.startswith("#")
            if not elsewhere and not name.startswith("on"):
                told.append(name if value is None else f'{name}="{escape(value)}"')
        return f"<{' '.join(told)}>"
