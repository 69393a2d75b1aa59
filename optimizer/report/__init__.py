"""Report in, text out: report.json rendered as HTML, Markdown and JUnit. Pure functions."""
