/** The load generator on real servers with real workers: it passes what is right and finds what is wrong. */
import { assert, layer } from "@effect/vitest"
import { jetstreamManager } from "@nats-io/jetstream"
import { Deferred, Effect, Exit, Layer, Redacted, Schedule, Scope } from "effect"
import type { SqlClient } from "effect/sql"
import { spawn } from "node:child_process"
import { fileURLToPath } from "node:url"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { PostgresServers } from "../../src/embedded/PostgresServers.ts"
import { type LoadOptions, makeLoad } from "../../src/load/Load.ts"
import { onShard } from "../../bench/servers/onShard.ts"
import { TestNats, TestPostgres } from "../../bench/servers/privateServers.ts"
import { inherited, startWorker, startWorkerProcess } from "../service/service.ts"
import { within } from "../foreign/within.ts"
import { connectTo } from "../../bench/servers/connectTo.ts"

const servers = Layer.mergeAll(TestNats.layer, TestPostgres.layer(1))
const program = fileURLToPath(new URL("../../src/objectlog.js", import.meta.url))

let runs = 0

/** A run in this process. Each has a name of its own: events of an earlier one may still come, as repetitions. */
const startLoad = Effect.fnUntraced(function* (options: Partial<LoadOptions>) {
  const { url } = yield* NatsServer
  return yield* makeLoad({
    servers: Redacted.make(url),
    logsTopic: "logs",
    queryTopic: "query",
    responseTopic: "response",
    run: `test${String(++runs).padStart(2, "0")}`,
    ratePerSecond: 500,
    objects: 10,
    firstId: 1n,
    size: { min: 20, max: 200 },
    durationMillis: undefined,
    verify: true,
    timeoutMillis: 30_000,
    notice: () => Effect.void,
    ...options,
  })
})

/** `objectlog load --verify` as a process; its exit code and what it has printed. */
const startProcess = Effect.fnUntraced(function* (...args: ReadonlyArray<string>): Effect.fn.Return<
  {
    readonly signal: (signal: NodeJS.Signals) => Effect.Effect<void>
    /** It has said that it sends no more. */
    readonly draining: Effect.Effect<void>
    readonly ended: Effect.Effect<{ readonly code: number | null; readonly output: string; readonly errors: string }>
  },
  never,
  Scope.Scope | NatsServer
> {
  const { url } = yield* NatsServer
  let [output, errors] = ["", ""]
  const child = yield* Effect.acquireRelease(
    Effect.sync(() =>
      spawn(process.execPath, [program, "load", "--verify", ...args], {
        env: { ...inherited, NATS_URL: url },
        stdio: ["ignore", "pipe", "pipe"],
      }),
    ),
    (one) => Effect.sync(() => one.kill("SIGKILL")),
  )
  child.stdout.on("data", (chunk: Buffer) => (output += chunk.toString()))
  child.stderr.on("data", (chunk: Buffer) => (errors += chunk.toString()))
  const closed = yield* Deferred.make<number | null>()
  child.once("close", (code) => Deferred.doneUnsafe(closed, Exit.succeed(code)))
  return {
    signal: (signal) => Effect.sync(() => void child.kill(signal)),
    draining: Effect.callback<void>((resume) => {
      child.stdout.on("data", () => {
        if (output.includes('"phase":"draining"')) resume(Effect.void)
      })
    }).pipe(within("it drains", 20_000, () => output + errors)),
    ended: Deferred.await(closed).pipe(
      within("the run ends", 40_000, () => output + errors),
      Effect.map((code) => ({ code, output, errors })),
    ),
  }
})

const onTheShard = Effect.fnUntraced(function* <A, E>(run: (sql: SqlClient.SqlClient) => Effect.Effect<A, E>) {
  return yield* onShard((yield* PostgresServers).shards[0]!, run)
})

/** Waits until an object has so many entries. */
const untilEntries = (id: number, count: number) =>
  onTheShard((sql) =>
    Effect.repeat(sql<{ entries: bigint }>`select coalesce(max(entries), 0) as entries from objects where id = ${id}`, {
      until: (rows) => Number(rows[0]!.entries) >= count,
      schedule: Schedule.spaced("20 millis"),
    }),
  ).pipe(within(`object ${id} has ${count} entries`, 30_000))

/** How soon the broker delivers again what a killed worker had. */
const setAckWait = Effect.fnUntraced(function* (millis: number) {
  const { url } = yield* NatsServer
  yield* Effect.promise(async () => {
    const connection = await connectTo(url)
    const manager = await jetstreamManager(connection)
    await manager.consumers.update("objectlog_logs", "objectlog", { ack_wait: millis * 1_000_000 })
    await connection.close()
  })
})

layer(servers, { excludeTestServices: true, timeout: "60 seconds" })("load", (it) => {
  it.effect("verifies two runs side by side on the same objects, one of them without reading back", () =>
    Effect.gen(function* () {
      yield* startWorker
      const one = yield* startLoad({ durationMillis: 1_000 })
      const two = yield* startLoad({ durationMillis: 1_000, verify: false })
      const complete = (load: typeof one) => Effect.andThen(load.send, load.finish)
      yield* Effect.all([complete(one), complete(two)], { concurrency: "unbounded" })
      const { answered, foreign, pending, sent, stored, unanswered, verified } = one.tally.counts
      assert.deepStrictEqual(
        { answered, pending, sent, stored, unanswered, verified },
        {
          answered: 500,
          pending: 0,
          sent: 500,
          stored: 500,
          unanswered: 0,
          verified: 500,
        },
      )
      assert.isAtMost(foreign, 500)
      assert.strictEqual(one.completelyRead(), 10)
      assert.strictEqual(one.tally.latency.total, 500)
      assert.deepStrictEqual([two.tally.counts.answered, two.tally.counts.verified], [500, 0])
      assert.strictEqual(two.completelyRead(), 0)
    }),
  )

  it.effect("is not mistaken when the worker is killed, the broker too, and both come back", () =>
    Effect.gen(function* () {
      const { control } = yield* NatsServer
      const worker = yield* startWorkerProcess
      yield* setAckWait(2_000)
      const load = yield* startLoad({ firstId: 100n, ratePerSecond: 300 })
      yield* Effect.raceFirst(
        load.send,
        Effect.gen(function* () {
          yield* untilEntries(100, 10)
          yield* worker.stop("SIGKILL", 5_000)
          yield* control.stop("SIGKILL")
          yield* control.start
          yield* startWorker
          yield* untilEntries(100, 40)
        }),
      )
      yield* load.finish
      const { answered, pending, sent, stored, unanswered, verified } = load.tally.counts
      // The first of ten objects in turn has forty.
      assert.isAtLeast(sent, 391)
      assert.deepStrictEqual(
        { answered, pending, unanswered, verified },
        {
          answered: sent,
          pending: 0,
          unanswered: 0,
          verified: sent,
        },
      )
      assert.isAtMost(stored, sent)
      assert.strictEqual(load.completelyRead(), 10)
    }),
  )

  it.effect("finds an entry whose text was changed on its way to the disk", () =>
    Effect.gen(function* () {
      yield* startWorker
      yield* onTheShard((sql) =>
        Effect.andThen(
          sql`create function change_one() returns trigger language plpgsql as $$
            begin new.log = overlay(new.log placing '!' from 18); return new; end $$`,
          sql`create trigger change_one before insert on log_entries
            for each row when (new.object_id = 201 and new.position = 30) execute function change_one()`,
        ),
      )
      const load = yield* startLoad({ firstId: 200n, objects: 2, ratePerSecond: 100 })
      const violation = yield* Effect.flip(load.send)
      assert.match(violation.message, /^violation: altered: object 201: append \d+ at position 30,/)
    }),
  )

  it.effect("as a command ends with 0 after a signal when all is well, and with 1 when it is not", () =>
    Effect.gen(function* () {
      yield* startWorker
      const well = yield* startProcess("--rate", "50", "--objects", "2", "--first-id", "400")
      const wrong = yield* startProcess("--rate", "50", "--objects", "2", "--first-id", "300")
      yield* untilEntries(301, 10)
      yield* untilEntries(401, 10)
      yield* well.signal("SIGTERM")
      // Read already, or not yet: it is missed in any case.
      yield* onTheShard((sql) => sql`delete from log_entries where object_id = 301 and position = 7`)
      yield* wrong.signal("SIGINT")
      const [good, bad] = yield* Effect.all([well.ended, wrong.ended], { concurrency: "unbounded" })
      assert.strictEqual(good.code, 0, good.errors)
      assert.match(good.output, /"verdict":"ok"/)
      assert.strictEqual(good.errors, "")
      assert.strictEqual(bad.code, 1, bad.errors)
      assert.match(bad.errors, /^objectlog: violation: (gap|lost): object 301: .*\b[78]\b/m)
      assert.match(bad.output, /"verdict":"violation"/)
    }),
  )

  it.effect("as a command that can't finish ends with 1 and a verdict at a second signal", () =>
    Effect.gen(function* () {
      const workers = yield* Scope.make()
      yield* Effect.provideService(startWorker, Scope.Scope, workers)
      const load = yield* startProcess("--rate", "20", "--objects", "1", "--first-id", "500")
      yield* untilEntries(500, 5)
      // Nobody answers any more, so nothing can be finished.
      yield* Scope.close(workers, Exit.void)
      yield* load.signal("SIGTERM")
      yield* load.draining
      yield* load.signal("SIGTERM")
      const { code, errors, output } = yield* load.ended
      assert.strictEqual(code, 1, errors)
      assert.match(errors, /^objectlog: .*ended by a second signal/m)
      assert.match(output, /"verdict":"unfinished"/)
    }),
  )
})
