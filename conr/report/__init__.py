"""The report: figures as PNG files, and one HTML page with the clusters."""
