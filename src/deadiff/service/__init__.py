"""`deadiff serve`: jobs, styles and pictures over HTTP. Import what you need from its modules; nothing is imported here."""
