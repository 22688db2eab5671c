"""Where steps are executed: today in this process."""
