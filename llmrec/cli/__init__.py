"""The command line: `llmrec COMMAND`, one small file per command."""
