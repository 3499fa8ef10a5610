"""What people look at: tables on the console, and one page for each command, which loads nothing from elsewhere."""
