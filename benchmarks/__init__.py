"""One script for each claim; results/ holds the raw data."""
