"""The corpus tables (Delta Lake), the signals that they hold, and deletion of rows."""
