"""The probe in one worker: start, serve, publish, and on any fault step aside."""
