#!/usr/bin/env bash
# Runs both compose files for real, with any Docker: brings them up, scales to four workers, kills a worker, restarts NATS,
# stops a shard and starts it again, all under the publisher that verifies, and asserts that nothing was lost. Where there
# is no Docker it says so and ends with 0.
#
#   test/compose.sh        about three minutes; QUERIES_MIN, OBJECTS and SIZE as in docker-compose.test.yaml
#   COMPOSE_KEEP=1 …       leaves everything as it is after a failure, to look at
#
# It uses projects and volumes of its own, and removes them at the end. Every wait is bounded.
set -Eeuo pipefail
cd "$(dirname "$0")/.."

if ! docker info >/dev/null 2>&1; then
  echo "compose: skipped, no Docker engine answers"
  exit 0
fi
if ! docker compose version >/dev/null 2>&1; then
  echo "compose: skipped, this Docker has no compose plugin"
  exit 0
fi

# Ports that are free, whatever else runs here; a load that ends when it is told to.
export NATS_PORT=0 PROMETHEUS_PORT=0 BIND_ADDRESS=127.0.0.1
export OBJECTLOG_IMAGE=objectlog:compose-test-$$ DURATION=30m QUERIES_MIN=${QUERIES_MIN:-6000}
plain() { docker compose -p "objectlog-compose-$$" -f docker-compose.yaml "$@"; }
load() { docker compose -p "objectlog-compose-load-$$" -f docker-compose.test.yaml --profile observability "$@"; }

say() { printf 'compose: [%3d s] %s\n' "$SECONDS" "$*"; }
fail() {
  say "FAILED: $*"
  load logs --no-color --tail 30 publisher worker nats 2>/dev/null || true
  exit 1
}
trap 'say "FAILED in line $LINENO: $BASH_COMMAND"' ERR
within() { timeout --foreground "$@"; }

clean_up() {
  trap - EXIT
  if [ "$1" != 0 ] && [ -n "${COMPOSE_KEEP:-}" ]; then
    say "kept: docker compose -p objectlog-compose-$$ and objectlog-compose-load-$$"
    return
  fi
  plain down -v --timeout 10 --remove-orphans >/dev/null 2>&1 || true
  load down -v --timeout 10 --remove-orphans >/dev/null 2>&1 || true
  docker image rm -f "$OBJECTLOG_IMAGE" >/dev/null 2>&1 || true
}
trap 'status=$?; clean_up $status; exit $status' EXIT
trap 'exit 130' INT TERM

# 1. docker-compose.yaml: comes up, appends, keeps logs over `down`, and stops within its time with code 0.
say "docker-compose.yaml: build and start"
within 900 docker compose -p "objectlog-compose-$$" -f docker-compose.yaml up --build -d --wait --wait-timeout 180 --quiet-pull >/dev/null 2>"/dev/null" ||
  fail "docker-compose.yaml does not come up"
published=$(docker ps --filter "label=com.docker.compose.project=objectlog-compose-$$" --format '{{.Ports}}' | tr ',' '\n' | grep -- '->' || true)
[ "$(wc -l <<<"$published")" = 1 ] && grep -q '127\.0\.0\.1:.*->4222/tcp' <<<"$published" ||
  fail "expected one published port, 4222 on 127.0.0.1, got: $published"
objectlog() { plain run --rm --no-deps -T -e MODE=release worker "$@" 2>/dev/null; }
objectlog append 42 "before the restart" >/dev/null || fail "append"
worker=$(plain ps -q worker)
[ "$(docker inspect -f '{{.HostConfig.ReadonlyRootfs}} {{.Config.User}}' "$worker")" = "true 1000:1000" ] ||
  fail "the worker is not confined"
administer() { plain exec -T "$1" psql -U postgres -d objectlog -tAc "$2" 2>/dev/null; }
for shard in shard-a shard-b; do
  roles=$(administer "$shard" "select rolname, rolsuper, rolpassword is null from pg_authid where rolcanlogin order by rolname")
  [ "$roles" = $'objectlog|f|f\npostgres|t|t' ] || fail "$shard: expected a role objectlog that is no superuser, and a superuser without a password, got: $roles"
  [ "$(administer "$shard" "select rolname from pg_roles join pg_class on relowner = pg_roles.oid where relname = 'log_entries'")" = objectlog ] ||
    fail "$shard: the tables do not belong to the workers' role"
  plain exec -T "$shard" sh -c 'grep CapEff "/proc/$(head -n 1 "$PGDATA/postmaster.pid")/status"' | grep -q '[[:space:]]0000000000000000$' ||
    fail "$shard: PostgreSQL has capabilities"
done
reaches() {
  plain run --rm --no-deps -T --entrypoint node worker -e \
    "require('node:net').connect($2, '$1').on('connect', () => process.exit(0)).on('error', () => process.exit(1)).setTimeout(5000, () => process.exit(1))" 2>/dev/null
}
reaches nats 4222 || fail "a worker does not reach NATS"
if reaches nats 8222; then fail "a worker reaches the monitoring port of NATS"; fi
began=$SECONDS
plain stop worker >/dev/null 2>&1
[ "$(docker inspect -f '{{.State.ExitCode}}' "$worker")" = 0 ] || fail "a stopped worker did not end with code 0"
[ $((SECONDS - began)) -le 12 ] || fail "a worker took $((SECONDS - began)) s to stop"
plain down --timeout 30 >/dev/null 2>&1
plain up -d --wait --wait-timeout 180 >/dev/null 2>&1 || fail "docker-compose.yaml does not come up again"
objectlog query 42 | grep -q "before the restart" || fail "the log is gone after down and up"
plain down -v --timeout 10 >/dev/null 2>&1
say "docker-compose.yaml: confined, up, append, stop with code 0, down, up, query: right"

# 2. docker-compose.test.yaml: the same under load, with faults.
say "docker-compose.test.yaml: start with $QUERIES_MIN appends a minute"
load up -d --wait --wait-timeout 180 worker prometheus >/dev/null 2>&1 || fail "docker-compose.test.yaml does not come up"
load up -d --no-recreate publisher >/dev/null 2>&1 || fail "the publisher does not start"
publisher=$(load ps -q publisher)
# Its warnings, on the other channel, are no reports.
exec {reports}< <(docker logs -f "$publisher" 2>/dev/null)

# Waits for a report that the publisher makes from now on, and tells it.
report() {
  local line=
  while read -r -t 0 -u "$reports"; do read -r -u "$reports" line || break; done
  read -r -t 60 -u "$reports" line || fail "the publisher is silent or ended: $line"
  grep -q '"phase":"sending"' <<<"$line" || fail "the publisher does not send any more: $line"
  say "$1: $(grep -oE '"(sent|answered|verified|lost|duplicated|reordered)":[0-9]+' <<<"$line" | tr -d '"' | tr '\n' ' ')"
}
report "two workers"

load up -d --no-recreate --wait --wait-timeout 180 --scale worker=4 worker >/dev/null 2>&1 || fail "no four workers"
report "four workers"

mapfile -t workers < <(load ps -q worker)
[ "${#workers[@]}" = 4 ] || fail "no four workers"
killed=${workers[0]}
docker kill -s KILL "$killed" >/dev/null
report "one worker killed"
docker start "$killed" >/dev/null

within 120 docker compose -p "objectlog-compose-load-$$" -f docker-compose.test.yaml restart nats >/dev/null 2>&1 || fail "nats does not restart"
report "nats restarted"

load kill -s KILL nats >/dev/null 2>&1
load up -d --no-recreate --wait --wait-timeout 120 nats >/dev/null 2>&1 || fail "nats does not start again"
report "nats killed and started"

load stop shard-b >/dev/null 2>&1
report "shard-b stopped"
report "shard-b is down"
load up -d --no-recreate --wait --wait-timeout 120 shard-b >/dev/null 2>&1 || fail "shard-b does not start again"
report "shard-b is back"

stopped=${workers[3]}
docker stop -t 15 "$stopped" >/dev/null
[ "$(docker inspect -f '{{.State.ExitCode}}' "$stopped")" = 0 ] || fail "a worker stopped under load did not end with code 0"
report "one worker stopped with code 0"

# What Prometheus saw: every worker, and the rules.
ask() { load exec -T prometheus wget -qO- "http://127.0.0.1:9090/api/v1/$1"; }
ask 'query?query=count(max_over_time(up%7Bjob%3D%22objectlog%22%7D%5B10m%5D)%3D%3D1)' | grep -qE '"[4-9]"\]' || fail "Prometheus saw fewer than four workers"
ask 'rules' | grep -q ObjectlogShardDown || fail "Prometheus has no rules"

# The first SIGTERM ends the sending; what was sent is still verified, every log once more from its beginning.
docker kill -s TERM "$publisher" >/dev/null
code=$(within 240 docker wait "$publisher") || fail "the publisher does not end"
summary=$(docker logs --tail 1 "$publisher" 2>/dev/null)
say "publisher: code $code, $summary"
[ "$code" = 0 ] || fail "the publisher found a violation"
grep -q '"verdict":"ok"' <<<"$summary" || fail "the publisher's verdict is not ok"
number() { grep -oE "\"$1\":[0-9]+" <<<"$summary" | grep -oE '[0-9]+'; }
[ "$(number sent)" -gt 0 ] && [ "$(number verified)" = "$(number stored)" ] || fail "not everything that was stored is verified"
say "passed: $(number stored) appends stored, $(number verified) verified, lost $(number lost), duplicated $(number duplicated), reordered $(number reordered)"
