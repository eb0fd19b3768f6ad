import type { PgClient } from "@effect/sql-pg"
import { assert, layer } from "@effect/vitest"
import { Cause, Effect, Exit, Fiber, Latch, Layer, Schedule } from "effect"
import { readFileSync } from "node:fs"
import { placementOf } from "../../src/placement/guard.ts"
import { gate } from "../../src/shard/appendEntries.ts"
import type { ShardSettings } from "../../src/config/ConfigShards.ts"
import { ShardPool } from "../../src/shard/ShardPool.ts"
import { ShardPoolLive } from "../../src/shard/ShardPoolLive.ts"
import { TestPostgres } from "../../bench/servers/privateServers.ts"
import { type ObjectId, toColumn } from "../../src/contract/ObjectId.ts"
import { clientOf, twoShards } from "./livePostgres.ts"
import { append, countIn, entry, everything, freshId, id, shardPoolContract } from "./shardPoolContract.ts"

const servers = TestPostgres.layer(2)

const poolOf = (shards: ReadonlyArray<ShardSettings>, autoMigrate = true) =>
  ShardPoolLive({ shards, autoMigrate, placement: placementOf(shards) })

/** Two shards with a pool that has started on them. */
const started = Effect.gen(function* () {
  const servers = yield* twoShards
  const shards = servers.map((server) => server.settings)
  const services = yield* Layer.build(poolOf(shards))
  return { servers, shards, pool: yield* Effect.provide(ShardPool, services) }
})

/** Two shards that were used by a pool which is closed again; `sql` is a connection to the first. */
const used = <E, R>(use: (pool: ShardPool["Service"], sql: PgClient.PgClient) => Effect.Effect<void, E, R>) =>
  Effect.scoped(
    Effect.gen(function* () {
      const { pool, shards } = yield* started
      yield* use(pool, yield* clientOf(shards[0]!))
      return shards
    }),
  )

/**
 * How `log_entries` was used: searches in each index, rows that they read, and `scan`, a walk over the whole table. A server
 * process reports that at the latest when it ends, so this waits until the pool's are gone. A first start looks once whether
 * anything is stored, through the index of positions.
 */
const indexUse = Effect.fnUntraced(function* (shard: ShardSettings | undefined) {
  const sql = yield* clientOf(shard!)
  yield* sql`
    select 1 from pg_stat_activity where datname = current_database() and application_name = 'objectlog'`.pipe(
    Effect.repeat({ until: (rows) => rows.length === 0, schedule: Schedule.spaced("20 millis") }),
    Effect.timeout("10 seconds"),
  )
  const uses = yield* sql<{ name: string; searches: bigint; rows: bigint }>`
    select indexrelname as name, idx_scan as searches, idx_tup_read as rows
    from pg_stat_user_indexes where relname = 'log_entries'
    union all
    select 'scan', seq_scan, seq_tup_read from pg_stat_user_tables where relname = 'log_entries'`
  return Object.fromEntries(
    uses.map(({ name, rows, searches }) => [name.replace("log_entries_", ""), { rows, searches }]),
  )
})

shardPoolContract(
  "ShardPoolLive",
  Layer.unwrap(Effect.map(twoShards, (shards) => poolOf(shards.map(({ settings }) => settings)))).pipe(
    Layer.provide(servers),
  ),
)

layer(servers, { excludeTestServices: true, timeout: "60 seconds" })("ShardPoolLive", (it) => {
  it.effect("lets appenders overlap without deadlocks or gaps", () =>
    Effect.gen(function* () {
      const { pool, shards } = yield* started
      // A pool appends one batch at a time.
      const others = yield* Effect.forEach(Array.from({ length: 3 }), () =>
        Effect.flatMap(Layer.build(Layer.fresh(poolOf(shards))), (services) => Effect.provide(ShardPool, services)),
      )
      const pools = [pool, ...others]
      const kept = Array.from({ length: 20 }, freshId)
      // New to all of them in each round.
      const added = Array.from({ length: 20 }, () => Array.from({ length: 20 }, freshId))
      let seq = 0
      yield* Effect.forEach(
        Array.from({ length: 8 }, (_, appender) => appender),
        Effect.fnUntraced(function* (appender) {
          for (let round = 0; round < 20; round++) {
            const ids = [...kept, ...added[round]!]
            const order = appender % 2 === 0 ? ids : ids.toReversed()
            yield* pools[appender % 4]!.append(
              "a",
              order
                .filter((_, index) => (index + round) % 3 !== appender % 3)
                .map((objectId) => entry(objectId, ++seq)),
            )
          }
        }),
        { concurrency: "unbounded", discard: true },
      )
      let total = 0
      for (const objectId of [...kept, ...added.flat()]) {
        const log = yield* pool.readPage("a", everything(objectId, { order: "position" }))
        assert.deepStrictEqual(
          log.map((at) => at.position),
          log.map((_, index) => index + 1),
        )
        total += log.length
      }
      assert.strictEqual(total, seq)
      // One that is repeated until it passes would be seen by nobody else.
      const sql = yield* clientOf(shards[0]!)
      const [server] = yield* sql<{ data_directory: string }>`show data_directory`
      assert.notInclude(readFileSync(`${server!.data_directory}.log`, "utf8"), "deadlock detected")
    }),
  )

  it.effect.each([{ rows: "new" }, { rows: "there" }])(
    "takes rows that are $rows in the order of their ids: while it waits for one it holds no larger one",
    ({ rows }) =>
      Effect.gen(function* () {
        const { pool, shards } = yield* started
        const [small, large] = [freshId(), freshId()]
        assert.isBelow(Number(toColumn(small)), Number(toColumn(large)))
        // The larger one comes first in the table too.
        if (rows === "there")
          for (const [seq, id] of [large, small].entries()) yield* pool.append("a", [entry(id, seq + 1)])
        const insert = (sql: PgClient.PgClient, id: ObjectId) =>
          sql`insert into objects (id, entries, last_timestamp) values (${toColumn(id)}, 0, -1)`
        const lock = (sql: PgClient.PgClient, id: ObjectId) =>
          sql`select 1 from objects where id = ${toColumn(id)} for update`
        const take = rows === "new" ? insert : lock
        const [holder, other] = [yield* clientOf(shards[0]!), yield* clientOf(shards[0]!)]
        const held = Latch.makeUnsafe(false)
        const holding = yield* Effect.forkScoped(
          holder.withTransaction(Effect.andThen(take(holder, small), Effect.andThen(held.open, Effect.never))),
        )
        yield* held.await
        const appending = yield* Effect.forkScoped(pool.append("a", [entry(large, 11), entry(small, 12)]))
        yield* other`select 1 from pg_locks where not granted`.pipe(
          Effect.repeat({ until: (waiting) => waiting.length > 0, schedule: Schedule.spaced("20 millis") }),
          Effect.timeout("5 seconds"),
        )
        // It would wait for whoever holds it.
        const free = other.withTransaction(
          Effect.andThen(
            other`set local lock_timeout = '500ms'`,
            Effect.andThen(take(other, large), Effect.fail("free")),
          ),
        )
        assert.strictEqual(yield* Effect.flip(free), "free")
        yield* Fiber.interrupt(holding)
        assert.lengthOf(yield* Fiber.join(appending), 2)
      }).pipe(Effect.scoped),
  )

  it.effect("queues for a while after it was overtaken, and not before", () =>
    Effect.gen(function* () {
      const { pool, shards } = yield* started
      const sql = yield* clientOf(shards[0]!)
      const id = freshId()
      yield* sql`select pg_advisory_lock(${gate})`
      yield* pool.append("a", [entry(id, 20)])
      const [late] = yield* append(pool, "a", [entry(id, 10)])
      assert.strictEqual(late!.position, 2)
      const queued = yield* Effect.forkChild(append(pool, "a", [entry(id, 30)]))
      yield* sql`select 1 from pg_locks where locktype = 'advisory' and not granted`.pipe(
        Effect.repeat({ until: (rows) => rows.length > 0, schedule: Schedule.spaced("20 millis") }),
        Effect.timeout("5 seconds"),
      )
      yield* sql`select pg_advisory_unlock(${gate})`
      const [placed] = yield* Fiber.join(queued)
      assert.strictEqual(placed!.position, 3)
    }),
  )

  it.effect("starts four times at once on empty databases", () =>
    Effect.gen(function* () {
      const shards = (yield* twoShards).map((server) => server.settings)
      const all = yield* Effect.all(
        Array.from({ length: 4 }, () => Layer.build(Layer.fresh(poolOf(shards)))),
        { concurrency: "unbounded" },
      )
      for (const services of all) {
        const pool = yield* Effect.provide(ShardPool, services)
        assert.isTrue((yield* pool.health).every((at) => at.ok))
      }
      const sql = yield* clientOf(shards[1]!)
      assert.deepStrictEqual(yield* sql`select name, state from shard`, [{ name: "b", state: "ready" }])
    }),
  )

  it.effect("says that a stopped shard is unavailable, serves the others, and recovers", () =>
    Effect.gen(function* () {
      const { pool, servers } = yield* started
      const objectId = freshId()
      yield* pool.append("a", [entry(objectId, 1)])
      yield* servers[0].stop
      assert.strictEqual((yield* Effect.flip(pool.append("a", [entry(objectId, 2)])))._tag, "ShardUnavailable")
      assert.strictEqual((yield* Effect.flip(pool.readPage("a", everything(objectId))))._tag, "ShardUnavailable")
      assert.strictEqual((yield* pool.append("b", [entry(objectId, 1)])).length, 1)
      assert.deepStrictEqual(
        (yield* pool.health).map((at) => at.ok),
        [false, true],
      )
      yield* servers[0].start
      const [placed] = yield* append(pool, "a", [entry(objectId, 2)]).pipe(Effect.retry(Schedule.recurs(20)))
      assert.strictEqual(placed!.position, 2)
    }),
  )

  it.effect("a shard that was down at the start and comes back as that of another placement stores nothing", () =>
    Effect.gen(function* () {
      const { servers, shards } = yield* started
      const sql = yield* clientOf(shards[1]!)
      yield* sql`update shard set placement = jsonb_set(placement, '{shards,0,weight}', '5')`
      yield* servers[1].stop
      const pool = yield* Effect.provide(ShardPool, yield* Layer.build(Layer.fresh(poolOf(shards))))
      yield* servers[1].start
      const objectId = freshId()
      const error = yield* Effect.flip(pool.append("b", [entry(objectId, 1)])).pipe(
        Effect.repeat({
          until: (found) => found._tag === "ShardUnavailable" && found.reason !== "connection",
          schedule: Schedule.spaced("50 millis"),
        }),
        Effect.timeout("20 seconds"),
      )
      assert.include(error.message, "weight")
      assert.isFalse((yield* pool.health)[1]!.ok)
      const again = yield* clientOf(shards[1]!)
      assert.deepStrictEqual(yield* again`select * from objects where id = ${toColumn(objectId)}`, [])
    }),
  )

  it.effect("starts while a known shard is down, and verifies it when it is back", () =>
    Effect.gen(function* () {
      const { servers, shards } = yield* started
      yield* servers[1].stop
      const pool = yield* Effect.provide(ShardPool, yield* Layer.build(Layer.fresh(poolOf(shards))))
      const objectId = freshId()
      assert.strictEqual((yield* pool.append("a", [entry(objectId, 1)])).length, 1)
      assert.strictEqual((yield* Effect.flip(pool.append("b", [entry(objectId, 1)])))._tag, "ShardUnavailable")
      yield* servers[1].start
      assert.strictEqual((yield* pool.append("b", [entry(objectId, 1)])).length, 1)
    }),
  )

  it.effect("tells how many connections each kind of operation uses, and how many wait for one", () =>
    Effect.gen(function* () {
      const { pool, shards } = yield* started
      const sql = yield* clientOf(shards[0]!)
      const atOnce = <A, E>(count: number, run: (n: number) => Effect.Effect<A, E>) =>
        Effect.forkChild(
          Effect.forEach(
            Array.from({ length: count }, (_, n) => n),
            run,
            { concurrency: "unbounded" },
          ),
        )
      const held = yield* sql.withTransaction(
        Effect.gen(function* () {
          yield* sql`lock table objects in access exclusive mode`
          const appends = yield* atOnce(3, (n) => pool.append("a", [entry(freshId(), n)]))
          const reads = yield* atOnce(11, () => countIn(pool, "a", freshId()))
          yield* Effect.sync(pool.usage).pipe(
            Effect.repeat({ until: ([a]) => a!.read.waiting === 3, schedule: Schedule.spaced("10 millis") }),
            Effect.timeout("5 seconds"),
          )
          const none = { inUse: 0, waiting: 0 }
          assert.deepStrictEqual(pool.usage(), [
            { shard: "a", append: { inUse: 1, waiting: 2 }, read: { inUse: 8, waiting: 3 } },
            { shard: "b", append: none, read: none },
          ])
          return [appends, reads] as const
        }),
      )
      yield* Effect.forEach(held, (fiber) => Fiber.join<unknown, unknown>(fiber), { discard: true })
      assert.deepStrictEqual(pool.usage()[0]!.read, { inUse: 0, waiting: 0 })
    }),
  )

  it.effect("lets neither slow reads delay appends and health, nor slow appends reads and health", () =>
    Effect.gen(function* () {
      const { pool, shards } = yield* started
      const sql = yield* clientOf(shards[0]!)
      const isReached = (count: number) =>
        sql<{ count: bigint }>`select count(*) from pg_locks where locktype = 'advisory' and not granted`.pipe(
          Effect.repeat({ until: ([row]) => Number(row!.count) === count, schedule: Schedule.spaced("20 millis") }),
          Effect.timeout("5 seconds"),
        )
      // Whoever reads, or appends to, the log of the object 7 waits for the test.
      yield* sql`
        create function held(id bigint) returns boolean language plpgsql as
        $$ begin if id = 7 then perform pg_advisory_xact_lock_shared(7); end if; return true; end $$`
      yield* sql`alter table log_entries rename to entries`
      yield* sql`
        create view log_entries as
        select object_id, timestamp, seq, position, log, escaped, message_id from entries where held(object_id)`
      yield* sql`insert into objects values (7, 1, 1)`
      yield* sql`insert into entries values (7, 1, 1, 1, 'log', false, null)`
      yield* sql`select pg_advisory_lock(7)`
      const held = { ...everything(freshId()), id: id(7) }
      const reads = yield* Effect.forEach(Array.from({ length: 12 }), () => Effect.forkChild(pool.readPage("a", held)))
      yield* isReached(8)
      yield* pool.append("a", [entry(freshId(), 1)])
      assert.isTrue((yield* pool.health)[0]!.ok)
      yield* sql`select pg_advisory_unlock(7)`
      yield* Fiber.joinAll(reads)

      yield* sql`alter table objects add check (held(id))`
      yield* sql`select pg_advisory_lock(7)`
      const appends = yield* Effect.forEach(Array.from({ length: 3 }), (_, n) =>
        Effect.forkChild(pool.append("a", [entry(id(7), n + 2)])),
      )
      yield* isReached(1)
      assert.strictEqual(yield* countIn(pool, "a", freshId()), 0)
      assert.isTrue((yield* pool.health)[0]!.ok)
      yield* sql`select pg_advisory_unlock(7)`
      yield* Fiber.joinAll(appends)
    }),
  )

  it.effect("makes a connection that is killed during an append a failure, not a defect", () =>
    Effect.gen(function* () {
      const { pool, shards } = yield* started
      const sql = yield* clientOf(shards[0]!)
      // The append's own trigger kills its session: no timing is needed.
      yield* sql`
        create function suicide() returns trigger language plpgsql as
        $$ begin perform pg_terminate_backend(pg_backend_pid()); return new; end $$`
      yield* sql`
        create trigger suicide before insert on log_entries for each row when (new.log = 'die') execute function suicide()`
      const objectId = freshId()
      const exit = yield* Effect.exit(pool.append("a", [entry(objectId, 1, { log: "die" })]))
      assert.isTrue(Exit.isFailure(exit) && !Cause.hasDies(exit.cause))
      assert.strictEqual(Exit.isFailure(exit) ? Cause.squash(exit.cause)?.constructor.name : "", "ShardUnavailable")
      assert.strictEqual((yield* append(pool, "a", [entry(objectId, 2)]))[0]!.position, 1)
    }),
  )

  it.effect("rejects a batch for its data, and stores none of it", () =>
    Effect.gen(function* () {
      const { pool, shards } = yield* started
      const sql = yield* clientOf(shards[0]!)
      yield* sql`
        create function poison() returns trigger language plpgsql as
        $$ begin raise exception 'poisoned' using errcode = '22000'; end $$`
      yield* sql`
        create trigger poison before insert on log_entries for each row when (new.log = 'poison') execute function poison()`
      const objectId = freshId()
      const error = yield* Effect.flip(pool.append("a", [entry(objectId, 1), entry(objectId, 2, { log: "poison" })]))
      assert.isTrue(error._tag === "BatchRejected" && error.sqlState === "22000" && error.message.includes("poisoned"))
      assert.strictEqual(yield* countIn(pool, "a", objectId), 0)
    }),
  )

  it.effect("refuses swapped addresses, and says so", () =>
    Effect.gen(function* () {
      const { shards } = yield* started
      const [a, b] = [shards[0]!, shards[1]!]
      const swapped = [
        { ...b, name: "a" },
        { ...a, name: "b" },
      ]
      const error = yield* Effect.flip(Layer.build(poolOf(swapped)))
      assert.strictEqual(error._tag, "PlacementMismatch")
      assert.include(
        error.message,
        `the database at 127.0.0.1:${b.port} is shard b, POSTGRES_IPS expects shard a there`,
      )
      assert.include(error.message, "swapped")
    }),
  )

  it.effect("appends to an object whose row it has seen and that is gone, since the database was restored", () =>
    Effect.gen(function* () {
      const { pool, shards } = yield* started
      const sql = yield* clientOf(shards[0]!)
      const [lost, kept] = [freshId(), freshId()]
      yield* pool.append("a", [entry(lost, 1), entry(kept, 2)])
      yield* sql`delete from log_entries where object_id = ${toColumn(lost)}`
      yield* sql`delete from objects where id = ${toColumn(lost)}`
      const placed = yield* append(pool, "a", [entry(lost, 3), entry(kept, 4)])
      assert.deepStrictEqual(
        placed.map(({ position }) => position),
        [1, 2],
      )
    }),
  )

  it.effect("says what to do about missing tables that it may not create", () =>
    Effect.gen(function* () {
      const shards = (yield* twoShards).map((server) => server.settings)
      const error = yield* Effect.flip(Layer.build(poolOf(shards, false)))
      assert.strictEqual(error._tag, "ShardUnsuitable")
      assert.include(error.message, "POSTGRES_AUTOMIGRATE=true")
    }),
  )

  it.effect("reads pages of a long log as a range of an index", () =>
    Effect.gen(function* () {
      const [shard] = yield* used((pool, sql) =>
        Effect.gen(function* () {
          yield* sql`insert into objects values (7, 200000, 200000)`
          yield* sql`
            insert into log_entries select 7, n, n, n, 'log ' || n, false, null from generate_series(1::bigint, 200000) n`
          const read = yield* Effect.forEach(["asc", "desc", "position"] as const, (order) =>
            pool.readPage("a", {
              ...everything(freshId(), { order, maxEntries: 2, upTo: 200_000 }),
              id: 7n as never,
              after: order === "position" ? { position: 100_000 } : { timestamp: 100_000n, seq: 100_000 },
            }),
          )
          assert.deepStrictEqual(
            read.map((page) => page.map((at) => at.position)),
            [
              [100_001, 100_002],
              [99_999, 99_998],
              [100_001, 100_002],
            ],
          )
        }),
      )
      const { object_id_position_key, pkey, scan } = yield* indexUse(shard)
      assert.deepStrictEqual([pkey!.searches, object_id_position_key!.searches, scan!.rows], [2n, 2n, 0n])
      assert.isBelow(Number(pkey!.rows), 1_000)
      assert.isBelow(Number(object_id_position_key!.rows), 1_000)
    }),
  )

  it.effect("looks up each entry by its own key, also where statistics are of a time when logs were short", () =>
    Effect.gen(function* () {
      const ids = Array.from({ length: 1_000 }, freshId)
      const named = (seq: number) => entry(ids[0]!, seq, { messageId: `m${seq}` })
      const log = Array.from({ length: 2_000 }, (_, index) => named(2_000 + index))
      const [shard] = yield* used((pool, sql) =>
        Effect.gen(function* () {
          yield* pool.append(
            "a",
            ids.map((id, index) => entry(id, 1 + index, { messageId: "m" })),
          )
          yield* sql`analyze log_entries`
          const first = yield* pool.append("a", log)
          assert.deepStrictEqual(
            yield* pool.append(
              "a",
              log.map((each) => ({ ...each, redelivered: true })),
            ),
            first,
          )
        }),
      )
      const { message_id, object_id_position_key, pkey, scan } = yield* indexUse(shard)
      // One row for each that is found, none for one that is not: 2,000 were stored once and came twice.
      assert.deepStrictEqual([pkey!.searches, pkey!.rows], [2_000n, 2_000n])
      assert.deepStrictEqual([message_id!.searches, message_id!.rows], [5_000n, 2_000n])
      assert.deepStrictEqual([object_id_position_key!.searches, scan!.rows], [1n, 0n])
    }),
  )

  it.effect("does not look up what is delivered for the first time", () =>
    Effect.gen(function* () {
      const id = freshId()
      const [shard] = yield* used((pool) =>
        Effect.gen(function* () {
          yield* pool.append("a", [entry(id, 1_000, { messageId: "m" })])
          yield* pool.append(
            "a",
            Array.from({ length: 500 }, (_, index) => entry(id, index)),
          )
          yield* pool.append("a", [entry(id, 1_001, { messageId: "m" })])
        }),
      )
      const { message_id, pkey } = yield* indexUse(shard)
      assert.deepStrictEqual([message_id!.searches, pkey!.searches], [2n, 0n])
    }),
  )

  it.effect("finds out once that the broker has lost count, not for each batch", () =>
    Effect.gen(function* () {
      const id = freshId()
      const log = Array.from({ length: 1_000 }, (_, index) => entry(id, index))
      const [shard] = yield* used((pool) =>
        Effect.gen(function* () {
          const first = yield* pool.append("a", log)
          for (let from = 0; from < log.length; from += 100) {
            assert.deepStrictEqual(yield* pool.append("a", log.slice(from, from + 100)), first.slice(from, from + 100))
          }
        }),
      )
      yield* indexUse(shard)
      const sql = yield* clientOf(shard!)
      const [row] = yield* sql<{ rolledBack: bigint }>`
        select xact_rollback as "rolledBack" from pg_stat_database where datname = current_database()`
      // The start of a pool has some of its own.
      assert.isBelow(Number(row!.rolledBack), 5)
    }),
  )
})
