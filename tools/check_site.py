"""Check the links between the pages of a built site: `python tools/check_site.py build/site`."""

import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """A page's links, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places = {""}
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("id", "name"):
                self.places.add(value or "")
            elif name == "href" or name == "src":
                self.links.append(value or "")


read = cache(Page)


def faults(path: Path, site: Path) -> Iterator[str]:
    """Yield the broken links of a page; links to other sites are not checked."""
    for link in read(path).links:
        found = urlsplit(link)
        if found.scheme or found.netloc:
            continue
        target = (path.parent / unquote(found.path)).resolve() if found.path else path
        if target.is_dir():
            target /= "index.html"
        if not target.is_relative_to(site) or not target.is_file():
            yield f"{path.relative_to(site)}: {link} has no target"
        elif target.suffix == ".html" and unquote(found.fragment) not in read(target).places:
            yield f"{path.relative_to(site)}: {link} names an anchor that its page lacks"


def main() -> int:
    site = Path(sys.argv[1]).resolve()
    pages = sorted(set(site.rglob("*.html")) - {site / "404.html"})  # served for any address
    found = [fault for page in pages for fault in faults(page, site)]
    print(*found, f"{len(pages)} pages checked", sep="\n")
    return 1 if found or not pages else 0


if __name__ == "__main__":
    sys.exit(main())
