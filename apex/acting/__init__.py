"""Acting: stepping environments with a policy and turning the steps into items. No torch."""
