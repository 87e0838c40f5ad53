"""Neural networks: `torsos` see observations, `cores` remember, and each whole one has a file."""
