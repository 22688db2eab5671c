"""What this machine and this installation can do."""
