"""Small environments with a known answer or a known best score."""
