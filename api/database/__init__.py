"""The database: requests, their logs, and everything else that must outlive the process."""
