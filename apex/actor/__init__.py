"""The actor: `daemon` steps environments, `local` and `central` say what they do."""
