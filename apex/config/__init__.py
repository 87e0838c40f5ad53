"""The configuration of a run."""

from apex.deprecated_imports import deprecated_names

__getattr__ = deprecated_names(__name__)
