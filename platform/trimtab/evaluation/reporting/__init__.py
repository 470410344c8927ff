"""The report's rooms: which runs it reads, what they show side by side, its words, tables, pictures and the page."""
