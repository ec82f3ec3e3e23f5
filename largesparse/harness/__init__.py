"""What measures: the drivers of large networks, their records, plots and reports."""
