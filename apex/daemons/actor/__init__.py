"""The actor: environments, and who decides for them."""
