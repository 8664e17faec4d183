"""The model card as a page. Whatever the card contains, it becomes text, headings, lists, tables and links, and never raw HTML."""

from collections.abc import Mapping
from pathlib import Path

from markdown_it import MarkdownIt
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

PAGE = Path(__file__).parent / "card.html"
PLACE = "<!-- card -->"
VARY = {"Vary": "Accept"}

# "js-default" escapes HTML, and makes no links to javascript: and the like. Images would be fetched from elsewhere.
_markdown = MarkdownIt("js-default").disable("image")


def answer(request: Request, markdown: str) -> Response:
    """A page for a browser, Markdown for any other client."""
    if wants_page(request):
        return page(_markdown.render(markdown))
    return Response(markdown, media_type="text/markdown", headers=VARY)


def wants_page(request: Request) -> bool:
    """Whether the client accepts HTML, as browsers do."""
    return "text/html" in request.headers.get("accept", "")


def page(html: str = "", status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The page around a card; if `html` is empty, the page asks for the key and fetches the card with it."""
    return HTMLResponse(PAGE.read_text().replace(PLACE, html), status, headers=VARY | dict(headers or {}))
