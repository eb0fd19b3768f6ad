/** A shard that is stopped, and one that is restored from an older backup, on real servers. */
import { assert, layer } from "@effect/vitest"
import { AckPolicy, DeliverPolicy, jetstreamManager } from "@nats-io/jetstream"
import { Effect, Layer, Schedule } from "effect"
import { replay } from "../../src/broker/replay.ts"
import { PostgresServers } from "../../src/embedded/PostgresServers.ts"
import { onShard } from "../../bench/servers/onShard.ts"
import { TestNats, TestPostgres } from "../../bench/servers/privateServers.ts"
import { assertLogs, idsOn, planAppends, startWorkerProcess } from "./service.ts"
import { collectAnswers, ForeignClient, publishInSequence } from "../foreign/ForeignClient.ts"
import { within } from "../foreign/within.ts"

const servers = ForeignClient.layer.pipe(Layer.provideMerge(Layer.mergeAll(TestNats.layer, TestPostgres.layer(2))))

/** Few enough that the appends of the stopped shard alone would use them up. */
const ackPendingMax = 3_000

const manager = Effect.flatMap(ForeignClient, ({ connection }) => Effect.promise(() => jetstreamManager(connection)))

const stored = (stream: string) =>
  Effect.flatMap(manager, (jsm) => Effect.promise(async () => (await jsm.streams.info(stream)).state.last_seq))

const untilParked = (count: number) =>
  stored("objectlog_logs_parked").pipe(
    Effect.flatMap((last) => (last >= count ? Effect.void : Effect.fail(last))),
    Effect.retry(Schedule.spaced("50 millis")),
    Effect.orDie,
    within(`${count} appends are parked`, 30_000),
  )

layer(servers, { excludeTestServices: true, timeout: "60 seconds" })("a shard that is away", (it) => {
  it.effect("holds up nobody, through a kill while its appends are parked, and loses and doubles nothing", () =>
    Effect.gen(function* () {
      const { connection } = yield* ForeignClient
      const { shards } = yield* PostgresServers
      const jsm = yield* manager
      yield* Effect.promise(async () => {
        await jsm.streams.add({ name: "objectlog_logs", subjects: ["logs"], duplicate_window: 100_000_000 })
        await jsm.consumers.add("objectlog_logs", {
          durable_name: "objectlog",
          ack_policy: AckPolicy.Explicit,
          deliver_policy: DeliverPolicy.All,
          max_ack_pending: ackPendingMax,
          // Not the 30 s of a real service, for the sake of the kill.
          ack_wait: 2_000_000_000,
          filter_subject: "logs",
        })
      })
      const [doomed] = yield* Effect.all([startWorkerProcess, startWorkerProcess], { concurrency: "unbounded" })
      const lost = planAppends({ prefix: "lost-", count: 12_000, objects: yield* idsOn("shard-a", 1_000, 20) })
      const flowing = planAppends({ prefix: "flow-", count: 2_000, objects: yield* idsOn("shard-b", 1_000, 20) })
      const answers = yield* collectAnswers(connection, "lost-")
      const others = yield* collectAnswers(connection, "flow-")
      yield* shards[0]!.control.stop("SIGINT")
      yield* publishInSequence(connection, lost.bodies.slice(0, 6_000))
      // In the middle of parking: some of it is stored there and not yet acknowledged in the intake.
      yield* untilParked(500)
      assert.strictEqual(yield* doomed.stop("SIGKILL", 5_000), "SIGKILL")
      yield* publishInSequence(connection, lost.bodies.slice(6_000))
      yield* untilParked(9_000)
      yield* publishInSequence(connection, flowing.bodies)
      yield* others.until(2_000, 20_000)
      assert.isBelow(answers.byRequest.size, 12_000)
      yield* shards[0]!.control.start
      yield* answers.until(12_000, 30_000)
      yield* assertLogs(connection, new Map([...lost.expected, ...flowing.expected]))
    }),
  )

  it.effect("what a restored database lost is stored again by a replay, in its place, and nothing twice", () =>
    Effect.gen(function* () {
      const { connection } = yield* ForeignClient
      const { shards } = yield* PostgresServers
      const jsm = yield* manager
      // What is done and still kept would be replayed too; here that only takes time.
      for (const stream of ["objectlog_logs", "objectlog_logs_parked"]) {
        yield* Effect.promise(() => jsm.streams.purge(stream))
      }
      yield* startWorkerProcess
      const objects = yield* idsOn("shard-a", 5_000, 4)
      const { bodies, expected } = planAppends({ prefix: "restored-", count: 400, objects })
      const answers = yield* collectAnswers(connection, "restored-")
      yield* publishInSequence(connection, bodies)
      yield* answers.until(400, 20_000)
      // As an older backup has it: the last 30 of each object are not there yet.
      yield* onShard(shards[0]!, (sql) =>
        Effect.andThen(
          sql`delete from log_entries where object_id = any(${objects.map(BigInt)}) and position > 70`,
          sql`update objects set entries = 70, last_timestamp = (select max(timestamp) from log_entries where object_id = id) where id = any(${objects.map(BigInt)})`,
        ),
      )
      const again = yield* collectAnswers(connection, "restored-")
      const [logs] = yield* replay(jsm, "logs")
      assert.isAtLeast(logs.messages, 400)
      yield* again.until(400, 20_000)
      yield* assertLogs(connection, expected)
    }),
  )
})
