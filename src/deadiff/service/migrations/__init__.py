"""Alembic migrations of the service's tables. `database.open_database` runs them; versions/ holds one file each."""
