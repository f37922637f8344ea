"""What a person looks at: figures as PNG files, and one HTML page with the clusters."""
