"""What this machine is, and how its memory and cores are used."""
