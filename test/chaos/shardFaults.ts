/** Faults of shards. */
import { Effect, Fiber, Schedule } from "effect"
import { execFileSync } from "node:child_process"
import { chownSync, statSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import type { SqlClient } from "effect/sql"
import type { EmbeddedShard } from "../../src/embedded/PostgresServers.ts"
import { onShard } from "../../bench/servers/onShard.ts"
import { type MakeFault, retried, type Targets } from "./Fault.ts"
import type { Randomness } from "./Randomness.ts"
import { workerRole } from "./TestShards.ts"

type Statements = (sql: SqlClient.SqlClient) => Effect.Effect<unknown, unknown>

const run = (shard: EmbeddedShard, statements: Statements): Effect.Effect<void> =>
  retried(Effect.asVoid(onShard(shard, statements)))

const ofShard = (targets: Targets, index: number) => ({
  target: targets.shards.shards[index]!.name,
  locks: [`shard ${index}`],
  shards: [index],
})

const anyShard = (targets: Targets, random: Randomness) => random.between(0, targets.shards.shards.length - 1)

/** A fault that statements of an administrator begin and end. */
const byStatements =
  (least: number, most: number, begin: Statements, end: Statements): MakeFault =>
  (targets, random) => {
    const index = anyShard(targets, random)
    const shard = targets.shards.shards[index]!
    return {
      ...ofShard(targets, index),
      millis: random.between(least, most),
      begin: run(shard, begin),
      end: run(shard, end),
    }
  }

const terminate = (sql: SqlClient.SqlClient) =>
  sql`select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'objectlog'`

const stopped = (targets: Targets, index: number, millis: number) => {
  const shard = targets.shards.shards[index]!
  return {
    ...ofShard(targets, index),
    millis,
    // SIGQUIT is PostgreSQL's immediate stop: no checkpoint, recovery at the next start.
    begin: shard.control.stop("SIGQUIT"),
    end: retried(shard.control.start),
  }
}

const sessionsTerminated: MakeFault = (targets, random) => {
  const index = anyShard(targets, random)
  return {
    ...ofShard(targets, index),
    locks: [],
    millis: 0,
    // The shard may be down for another fault's sake.
    begin: Effect.ignore(onShard(targets.shards.shards[index]!, terminate)),
    end: Effect.void,
  }
}

/** The server and its children hold their connections and answer nothing. */
const hung: MakeFault = (targets, random) => {
  const index = anyShard(targets, random)
  const shard = targets.shards.shards[index]!
  let stopped: ReadonlyArray<number> = []
  const children = () =>
    execFileSync("ps", ["-o", "pid=", "--ppid", String(shard.pid)], { encoding: "utf8" })
      .trim()
      .split(/\s+/)
      .map(Number)
  return {
    ...ofShard(targets, index),
    millis: random.between(3_000, 15_000),
    begin: Effect.sync(() => {
      process.kill(shard.pid, "SIGSTOP")
      // It makes no more of them.
      stopped = children()
      for (const pid of stopped) process.kill(pid, "SIGSTOP")
    }),
    end: Effect.sync(() => {
      for (const pid of [...stopped, shard.pid]) process.kill(pid, "SIGCONT")
    }),
  }
}

/**
 * It stops at once, and its data are served at the same address by a standby, which only reads until it is promoted: what a client
 * sees of a failover.
 */
const failedOver: MakeFault = (targets, random) => {
  const index = anyShard(targets, random)
  const shard = targets.shards.shards[index]!
  let starting: Fiber.Fiber<void> | undefined
  const asStandby = Effect.sync(() => {
    const signal = join(shard.dataDir, "standby.signal")
    const { gid, uid } = statSync(shard.dataDir)
    writeFileSync(signal, "")
    chownSync(signal, uid, gid)
  })
  const reads = onShard(shard, (sql) => sql<{ inRecovery: boolean }>`select pg_is_in_recovery() as "inRecovery"`).pipe(
    Effect.filterOrFail(([row]) => row!.inRecovery),
  )
  return {
    ...ofShard(targets, index),
    millis: random.between(1_000, 6_000),
    begin: shard.control.stop("SIGQUIT").pipe(
      Effect.andThen(asStandby),
      // It counts as started when it is promoted.
      Effect.andThen(Effect.forkDetach(Effect.orDie(shard.control.start))),
      Effect.tap((fiber) => Effect.sync(() => (starting = fiber))),
      Effect.andThen(Effect.retry(reads, { schedule: Schedule.spaced("50 millis"), times: 400 })),
      Effect.orDie,
      Effect.asVoid,
    ),
    end: Effect.andThen(
      run(shard, (sql) => sql`select pg_promote()`),
      Effect.suspend(() => (starting === undefined ? Effect.void : Fiber.join(starting))),
    ),
  }
}

const readOnly = byStatements(
  2_000,
  6_000,
  (sql) => Effect.andThen(sql`alter system set default_transaction_read_only = on`, sql`select pg_reload_conf()`),
  (sql) => Effect.andThen(sql`alter system reset default_transaction_read_only`, sql`select pg_reload_conf()`),
)

const loginRefused = byStatements(
  2_000,
  6_000,
  (sql) => Effect.andThen(sql`alter role ${sql(workerRole.name)} nologin`, terminate(sql)),
  (sql) => sql`alter role ${sql(workerRole.name)} login`,
)

/** What each of them makes impossible: to append, to lock an object's row, to read. */
const rights = ["insert on log_entries", "update on objects", "select on log_entries"]

const rightRevoked: MakeFault = (targets, random, longMillis) => {
  const right = random.pick(rights)
  const fault = byStatements(
    2_000,
    6_000,
    (sql) => sql`revoke ${sql.literal(right)} from ${sql(workerRole.name)}`,
    (sql) => sql`grant ${sql.literal(right)} to ${sql(workerRole.name)}`,
  )(targets, random, longMillis)
  return { ...fault, target: `${fault.target}, ${right}` }
}

/** Each transaction that appends takes 0.9 s. */
const slow = byStatements(
  3_000,
  8_000,
  (sql) =>
    sql`create function slow() returns trigger language plpgsql as 'begin perform pg_sleep(0.9); return null; end'`.pipe(
      Effect.andThen(sql`create trigger slow before insert on log_entries for each statement execute function slow()`),
    ),
  (sql) => sql`drop function if exists slow() cascade`,
)

const diskFull: MakeFault = (targets, random) => {
  const disk = targets.shards.smallDisk
  if ("skipped" in disk) throw new Error(disk.skipped)
  const shard = targets.shards.shards[disk.shard]!
  const answers = onShard(shard, (sql) => sql`select 1`)
  return {
    ...ofShard(targets, disk.shard),
    millis: random.between(3_000, 8_000),
    begin: disk.fill,
    // PostgreSQL may have given up, when it could not write its log: then it is for the operator to start it again.
    end: disk.free.pipe(
      Effect.andThen(Effect.retry(answers, { schedule: Schedule.spaced("200 millis"), times: 10 })),
      Effect.catch(() => retried(shard.control.start)),
      Effect.asVoid,
    ),
  }
}

export const shardFaults = {
  "shard stopped": (targets, random) => stopped(targets, anyShard(targets, random), random.between(500, 6_000)),
  "sessions terminated": sessionsTerminated,
  "shard hung": hung,
  "shard failed over": failedOver,
  "shard read-only": readOnly,
  "shard slow": slow,
  "shard refuses the login": loginRefused,
  "shard revokes a right": rightRevoked,
} as const satisfies Record<string, MakeFault>

/** Planned apart from the others. */
export const longFaults = {
  "shard stopped for long": (targets, random, longMillis) => stopped(targets, anyShard(targets, random), longMillis),
} as const satisfies Record<string, MakeFault>

/** Where a small disk can be had. */
export const diskFaults = { "disk full": diskFull } as const satisfies Record<string, MakeFault>
