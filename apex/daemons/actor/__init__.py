"""The actor: steps environments, with local or central inference."""
