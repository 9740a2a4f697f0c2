"""What the site takes from elsewhere in the repository, so that nothing stands in two places.

A page that holds only `<!-- from: PATH -->` is the file at that path of the repository. Links to files
outside this folder go to the site's own page or record of it where there is one; of others the text is left,
with the path. Records and their plots are copied as they are.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
RECORDS = "benches/record"
# Where files of the repository are pages here.
PAGES = {"FORMAT.md": "format.md", "SECURITY.md": "security.md", "README.md": "index.md"}

_FROM = re.compile(r"<!-- from: (\S+) -->")
_LINK = re.compile(r"(!?)\[((?:[^\]]|\n)*?)\]\(([^)#\s:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the records and their plots, under the path that they have in the repository."""
    for path in sorted((ROOT / RECORDS).iterdir()):
        files.append(File.generated(config, f"{RECORDS}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Put in what comes from elsewhere, and send its links to where they lead on the site."""
    found, source = _FROM.search(markdown), f"docs/{page.file.src_uri}"
    if found:
        source = found[1]
        text = (ROOT / source).read_text(encoding="utf-8")
        markdown = markdown[: found.start()] + text + markdown[found.end() :]

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[3]))
        is_own, anchor = target.startswith("docs/"), match[4] or ""
        if not (ROOT / target).exists():
            raise FileNotFoundError(f"{source}: a link to {match[3]}, which is not there")
        if target in PAGES or target.startswith(f"{RECORDS}/") or is_own:
            to = PAGES.get(target, target.removeprefix("docs/"))
            here = posixpath.dirname(page.file.src_uri)
            return f"{match[1]}[{match[2]}]({posixpath.relpath(to, here or '.')}{anchor})"
        return f"{match[2]} (`{target}`)" if match[2] != target else f"`{target}`"

    return _LINK.sub(link, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Leave out the colons that mark drawings in docstrings."""
    return html.replace("<p>::</p>", "").replace("::</p>", ":</p>")
