"""What the site has besides written pages: the repository's own documents, and references."""
