"""The database: requests, their logs, and whatever else must outlive the process."""
