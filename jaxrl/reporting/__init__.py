"""What report pages are made of."""
