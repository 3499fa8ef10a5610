"""The sub-commands of mfmd and mfmd-train, a file each: run(arguments) with what the parsers of mfmd.cli have read."""
