"""Plan (keys), build (run or reuse), measure, and assemble the report. Knows no stage by name."""
