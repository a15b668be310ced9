"""Long jobs in units that processes share: a ledger on disk, and who does the work."""
