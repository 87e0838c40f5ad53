"""Neural networks, one file each, built from torsos (encoders) and recurrent cores."""
