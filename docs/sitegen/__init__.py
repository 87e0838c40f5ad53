"""Generators of the site's reference pages, and of links to the repository's documents."""
