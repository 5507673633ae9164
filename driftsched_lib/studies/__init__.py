"""What the notebooks ask: one module per question, from runs to the tables that answer it."""
