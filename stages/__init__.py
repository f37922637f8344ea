"""The command line: arguments → conr.pipeline → one summary. Installed as conr.stages."""
