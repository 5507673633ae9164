"""What the notebooks ask: a module a question, from runs to the tables that answer it."""
