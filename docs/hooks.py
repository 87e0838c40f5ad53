"""Hooks of `mkdocs build` that add the repository's documents and the generated pages."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from sitegen import commands, configuration
from sitegen.repository import DOCS, ROOT, documents, relinked, site_uri

TOP_LEVEL = ("README.md", "ARCHITECTURE.md", "PROTOCOL.md", "CHANGELOG.md")
GENERATED = {"CONFIGURATION.md": configuration.page, "COMMANDS.md": commands.page}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in `docs/`."""
    written = [f"{DOCS}{page.src_uri}" for page in files.documentation_pages()]
    for path in documents([*TOP_LEVEL, *written]):
        if not path.startswith(DOCS):
            files.append(File.generated(config, site_uri(path), abs_src_path=str(ROOT / path)))
    for uri, page in GENERATED.items():
        files.append(File.generated(config, uri, content=page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links between documents for the site."""
    uri = page.file.src_uri
    if uri in GENERATED:
        return markdown
    in_docs = page.file.generated_by is None
    return relinked(markdown, f"{DOCS}{uri}" if in_docs else uri)
