#!/bin/sh
# Run by PostgreSQL's image once, when a volume is new: makes the workers' role, which may make its tables and nothing else, and takes
# the superuser's password away, so that he can log in only from within the container.
set -eu
: "${WORKER_ROLE:?}" "${POSTGRES_PASSWORD:?}"
psql --no-psqlrc --quiet -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\getenv role WORKER_ROLE
\getenv superuser POSTGRES_USER
\getenv password POSTGRES_PASSWORD
create role :"role" login password :'password';
grant create on schema public to :"role";
alter role :"superuser" password null;
SQL
