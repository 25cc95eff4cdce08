"""Reports of an evaluation: JSON, Markdown, a table of images (CSV) and one HTML page.

summary.py   all numbers, computed once for every form of the report
tables.py    the table of metrics
charts.py    line charts as SVG
page.py      the HTML page, with page.html as its template
write.py     writes the files
"""

from sigcam.evaluate.reports.summary import Summary, summarise
from sigcam.evaluate.reports.write import FILES, write_reports

__all__ = ["FILES", "Summary", "summarise", "write_reports"]
