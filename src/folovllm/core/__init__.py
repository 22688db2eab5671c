"""Who runs in a step, and on which cache blocks: no torch in here."""
