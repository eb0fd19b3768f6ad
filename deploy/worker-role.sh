#!/bin/sh
# Run by PostgreSQL's image once, when a volume is new: makes the workers' role, which may make its tables and nothing else, and takes
# the superuser's password away, so that he can log in only from within the container.
set -eu
psql --no-psqlrc --quiet -v ON_ERROR_STOP=1 -v role="$WORKER_ROLE" -v superuser="$POSTGRES_USER" -v password="$(cat "$POSTGRES_PASSWORD_FILE")" \
  --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
create role :"role" login password :'password';
grant create on schema public to :"role";
alter role :"superuser" password null;
SQL
