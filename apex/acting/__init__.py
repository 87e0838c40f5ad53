"""Acting: stepping environments with a policy, and making items of what happens. No torch."""
