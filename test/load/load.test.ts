/** `objectlog load` as a process, on real servers with real workers: it passes what is right and finds what is wrong. */
import { assert, layer } from "@effect/vitest"
import { PgClient } from "@effect/sql-pg"
import { jetstreamManager } from "@nats-io/jetstream"
import { connect } from "@nats-io/transport-node"
import { Effect, Layer, Option, Schema, type Scope } from "effect"
import { SqlClient } from "effect/sql"
import { spawn } from "node:child_process"
import { fileURLToPath } from "node:url"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { PostgresServers } from "../../src/embedded/PostgresServers.ts"
import { TestNats, TestPostgres } from "../embedded/testServers.ts"
import { startWorkerProcess, within } from "../service/service.ts"

const servers = Layer.mergeAll(TestNats.layer, TestPostgres.layer(1))
const program = fileURLToPath(new URL("../../src/main.ts", import.meta.url))

const Summary = Schema.fromJsonString(
  Schema.Struct({
    type: Schema.Literal("summary"),
    verdict: Schema.String,
    violation: Schema.optionalKey(Schema.String),
    sent: Schema.Int,
    stored: Schema.Int,
    answered: Schema.Int,
    verified: Schema.Int,
    completely_read: Schema.Int,
    p50_ms: Schema.Finite,
  }),
)
const decodeSummary = Schema.decodeUnknownOption(Summary)

interface Run {
  readonly pid: number
  readonly signal: (signal: NodeJS.Signals) => Effect.Effect<void>
  /** The exit code, what stderr says, and the last line of stdout. */
  readonly ended: Effect.Effect<{
    readonly code: number | null
    readonly errors: string
    readonly summary: typeof Summary.Type
  }>
}

/** Starts `objectlog load --verify`; it is killed with the scope. */
const startLoad = Effect.fnUntraced(function* (
  ...args: ReadonlyArray<string>
): Effect.fn.Return<Run, never, Scope.Scope | NatsServer> {
  const { url } = yield* NatsServer
  let [output, errors] = ["", ""]
  const child = yield* Effect.acquireRelease(
    Effect.sync(() =>
      spawn(process.execPath, [program, "load", "--verify", ...args], {
        env: { PATH: process.env["PATH"], NATS_URL: url },
        stdio: ["ignore", "pipe", "pipe"],
      }),
    ),
    (one) => Effect.sync(() => one.kill("SIGKILL")),
  )
  child.stdout.on("data", (chunk: Buffer) => (output += chunk.toString()))
  child.stderr.on("data", (chunk: Buffer) => (errors += chunk.toString()))
  return {
    pid: child.pid!,
    signal: (signal) => Effect.sync(() => void child.kill(signal)),
    ended: Effect.callback<number | null>((resume) => {
      const end = () => resume(Effect.succeed(child.exitCode))
      if (child.exitCode !== null || child.signalCode !== null) return end()
      child.once("close", end)
    }).pipe(
      within("the run ends", 30_000, () => output + errors),
      Effect.map((code) => {
        const summary = Option.getOrUndefined(decodeSummary(output.trim().split("\n").at(-1)))
        assert.isDefined(summary, output + errors)
        return { code, errors, summary }
      }),
    ),
  }
})

const onShard = Effect.fnUntraced(function* <A, E>(
  use: (sql: SqlClient.SqlClient) => Effect.Effect<A, E>,
): Effect.fn.Return<A, unknown, PostgresServers> {
  const { database, host, password, port, user } = (yield* PostgresServers).shards[0]!
  return yield* Effect.flatMap(SqlClient.SqlClient, use).pipe(
    Effect.provide(PgClient.layer({ host, port, username: user, password, database })),
  )
})

/** How soon the broker delivers again what a killed worker had. */
const setAckWait = Effect.fnUntraced(function* (millis: number) {
  const { url } = yield* NatsServer
  yield* Effect.promise(async () => {
    const connection = await connect({ servers: url })
    const manager = await jetstreamManager(connection)
    await manager.consumers.update("objectlog_logs", "objectlog", { ack_wait: millis * 1_000_000 })
    await connection.close()
  })
})

/** Waits until an object has so many entries. */
const untilEntries = (id: number, count: number) =>
  onShard((sql) =>
    Effect.repeat(sql<{ entries: bigint }>`select coalesce(max(entries), 0) as entries from objects where id = ${id}`, {
      until: (rows) => Number(rows[0]!.entries) >= count,
    }),
  ).pipe(within(`object ${id} has ${count} entries`, 20_000))

layer(servers, { excludeTestServices: true, timeout: "60 seconds" })("objectlog load", (it) => {
  it.effect("verifies a run, on objects that have logs too, and ends well", () =>
    Effect.gen(function* () {
      yield* startWorkerProcess
      for (const times of [1, 2]) {
        const run = yield* startLoad("--rate", "1000", "--objects", "20", "--size", "20-200", "--duration", "1s")
        const { code, errors, summary } = yield* run.ended
        assert.strictEqual(errors, "")
        assert.strictEqual(code, 0)
        const { answered, completely_read, sent, stored, verdict, verified } = summary
        assert.deepStrictEqual([verdict, sent, stored, answered, verified], ["ok", 1000, 1000, 1000, 1000])
        assert.strictEqual(completely_read, 20)
        yield* untilEntries(20, times * 50)
      }
    }),
  )

  it.effect("is not mistaken when its worker is killed and replaced, and verifies what was sent before a signal", () =>
    Effect.gen(function* () {
      const worker = yield* startWorkerProcess
      yield* setAckWait(2_000)
      const run = yield* startLoad("--rate", "500", "--objects", "5", "--first-id", "100")
      yield* untilEntries(104, 20)
      yield* worker.stop("SIGKILL", 5_000)
      yield* startWorkerProcess
      yield* untilEntries(104, 60)
      yield* run.signal("SIGTERM")
      const { code, summary } = yield* run.ended
      assert.strictEqual(code, 0)
      assert.strictEqual(summary.verdict, "ok")
      assert.strictEqual(summary.verified, summary.sent)
      yield* setAckWait(30_000)
    }),
  )

  it.effect("finds an entry that was changed behind the service's back, at once", () =>
    Effect.gen(function* () {
      yield* startWorkerProcess
      yield* onShard((sql) =>
        Effect.andThen(
          sql`create function change_one() returns trigger language plpgsql as $$
            begin new.log = overlay(new.log placing '!' from 5); return new; end $$`,
          sql`create trigger change_one before insert on log_entries
            for each row when (new.object_id = 201 and new.position = 30) execute function change_one()`,
        ),
      )
      const run = yield* startLoad("--rate", "500", "--objects", "2", "--first-id", "200", "--size", "80")
      const { code, errors, summary } = yield* run.ended
      assert.strictEqual(code, 1)
      assert.strictEqual(summary.verdict, "violation")
      assert.match(errors, /objectlog: violation: \w+: object 201: append 30 /)
    }),
  )

  it.effect("finds an entry that was deleted after it was verified", () =>
    Effect.gen(function* () {
      yield* startWorkerProcess
      const run = yield* startLoad("--rate", "300", "--objects", "2", "--first-id", "300", "--timeout", "5s")
      yield* untilEntries(301, 200)
      yield* onShard((sql) => sql`delete from log_entries where object_id = 301 and position = 7`)
      yield* run.signal("SIGINT")
      const { code, errors } = yield* run.ended
      assert.strictEqual(code, 1)
      assert.match(errors, /objectlog: violation: (gap|lost): object 301: .*7/)
    }),
  )
})
