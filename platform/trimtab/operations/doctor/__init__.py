"""``trimtab doctor``: what will go wrong on this machine and its cluster, found before it does."""

from trimtab.operations.doctor.examination import Questions, examine
from trimtab.operations.doctor.findings import Finding, as_json, has_errors, remedies, summary, table

__all__ = ["Finding", "Questions", "as_json", "examine", "has_errors", "remedies", "summary", "table"]
