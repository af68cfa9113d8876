"""What a run tells: statistics over seeds, the report page."""
