"""One result, two forms: JSON for programs, one self-contained page for people."""

from probes.report.envelope import SCHEMA
from probes.report.files import write_report
from probes.report.schema import validate

__all__ = ["SCHEMA", "validate", "write_report"]
