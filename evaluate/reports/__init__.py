"""What an evaluation is told in: JSON, Markdown, a table of images (CSV) and one HTML page."""

from sigcam.evaluate.reports.summary import Summary, summarise
from sigcam.evaluate.reports.write import write_reports

__all__ = ["Summary", "summarise", "write_reports"]
