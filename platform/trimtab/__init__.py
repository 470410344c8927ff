"""trimtab: models that correct their own course, and safety as a setting of each request."""

__version__ = "0.1.0"
