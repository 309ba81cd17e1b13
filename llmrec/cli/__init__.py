"""The command line: `llmrec COMMAND`, one thin file per command."""
