"""The configuration of a run."""

from apex.older_names import older_names

__getattr__ = older_names(__name__)
