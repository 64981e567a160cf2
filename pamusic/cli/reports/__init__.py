"""Reports that commands print: tables and JSON."""
