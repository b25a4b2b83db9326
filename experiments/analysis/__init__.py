"""What run folders say: read, added up, compared, put into words, tables and pictures."""
