/** Outages in the middle of a flood: of a worker, of a shard, of the broker, and a message that a shard refuses. */
import { assert, layer } from "@effect/vitest"
import { DeliverPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream"
import type { NatsConnection } from "@nats-io/transport-node"
import { Effect, Layer, Schedule } from "effect"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { PostgresServers } from "../../src/embedded/PostgresServers.ts"
import { onShard } from "../../bench/servers/onShard.ts"
import { TestNats, TestPostgres } from "../../bench/servers/privateServers.ts"
import { assertLogs, idsOn, planAppends, startWorkerProcess } from "./service.ts"
import { type Answers, appendBody, collectAnswers, ForeignClient, publishInSequence } from "../foreign/ForeignClient.ts"
import { type Event } from "../foreign/Event.ts"
import { within } from "../foreign/within.ts"
import { connectTo } from "../../bench/servers/connectTo.ts"

const servers = ForeignClient.layer.pipe(Layer.provideMerge(Layer.mergeAll(TestNats.layer, TestPostgres.layer(2))))

const idsFrom = (first: number, count: number) => Array.from({ length: count }, (_, i) => first + i)

/** Every request has an answer and each is good; an answer may come more than once, for the same entry. */
const assertAllStored = ({ byRequest }: Answers, count: number) => {
  const seqs = new Set<number>()
  for (const [request, events] of byRequest) {
    for (const event of events) {
      assert.strictEqual(event.status, "ok", request)
      assert.strictEqual(event.seq, events[0]!.seq, request)
      assert.strictEqual(event.position, events[0]!.position, request)
      seqs.add(event.seq!)
    }
  }
  assert.strictEqual(byRequest.size, count)
  assert.strictEqual(seqs.size, count)
}

/** Of the intake, and of what is parked: a lane that stalls in the flood has some of it parked. */
const setAckWait = Effect.fnUntraced(function* (connection: NatsConnection, millis: number) {
  const { shards } = yield* PostgresServers
  yield* Effect.promise(async () => {
    const jsm = await jetstreamManager(connection)
    const ack_wait = millis * 1_000_000
    await jsm.consumers.update("objectlog_logs", "objectlog", { ack_wait })
    const parked = async () => {
      const all = await jsm.consumers.list("objectlog_logs_parked").next()
      return all.map(({ name }) => name).filter((name) => name.startsWith("appends_"))
    }
    // A worker makes them when it first pulls, which may be a moment after it is ready.
    let names = await parked()
    while (names.length < shards.length) names = await parked()
    for (const name of names) await jsm.consumers.update("objectlog_logs_parked", name, { ack_wait })
  })
})

/** All answers that the response stream holds for a prefix, read from its beginning until there are so many. */
const storedAnswers = (connection: NatsConnection, prefix: string, count: number) =>
  Effect.promise(async () => {
    const consumer = await jetstream(connection).consumers.get("objectlog_response", {
      deliver_policy: DeliverPolicy.All,
    })
    const byRequest = new Map<string, Array<Event["body"]>>()
    const messages = await consumer.consume()
    for await (const message of messages) {
      const body = message.json<Event["body"]>()
      if (body.request_id?.startsWith(prefix) !== true) continue
      byRequest.set(body.request_id, [...(byRequest.get(body.request_id) ?? []), body])
      if (byRequest.size === count) break
    }
    messages.stop()
    return byRequest
  })

layer(servers, { excludeTestServices: true, timeout: "60 seconds" })("faults", (it) => {
  it.effect("a worker is killed in the middle of a flood: another takes over, everything is there once", () =>
    Effect.gen(function* () {
      const { connection } = yield* ForeignClient
      const workers = yield* Effect.all([startWorkerProcess, startWorkerProcess], { concurrency: "unbounded" })
      // Not the 30 s of a real service, for the sake of this test.
      yield* setAckWait(connection, 2_000)
      const prefix = "kill-"
      const count = 20_000
      const { bodies, expected } = planAppends({ prefix, count, objects: idsFrom(1_000, 200) })
      const answers = yield* collectAnswers(connection, prefix)
      const [, before] = yield* Effect.all(
        [
          publishInSequence(connection, bodies),
          Effect.gen(function* () {
            yield* answers.until(2_000, 10_000)
            const seen = answers.byRequest.size
            assert.strictEqual(yield* workers[0].stop("SIGKILL", 5_000), "SIGKILL")
            return seen
          }),
        ],
        { concurrency: "unbounded" },
      )
      assert.isBelow(before, count)
      yield* answers.until(count, 15_000)
      assertAllStored(answers, count)
      yield* assertLogs(connection, expected)
      yield* setAckWait(connection, 30_000)
    }),
  )

  it.effect("a shard crashes in the middle of a flood and comes back", () =>
    Effect.gen(function* () {
      const { connection } = yield* ForeignClient
      const { shards } = yield* PostgresServers
      yield* startWorkerProcess
      const prefix = "crash-"
      const count = 5_000
      const { bodies, expected } = planAppends({ prefix, count, objects: idsFrom(2_000, 100) })
      const answers = yield* collectAnswers(connection, prefix)
      const [, before] = yield* Effect.all(
        [
          publishInSequence(connection, bodies),
          Effect.gen(function* () {
            yield* answers.until(1_000, 10_000)
            const seen = answers.byRequest.size
            yield* shards[0]!.control.stop("SIGQUIT")
            yield* shards[0]!.control.start
            return seen
          }),
        ],
        { concurrency: "unbounded" },
      )
      assert.isBelow(before, count)
      yield* answers.until(count, 20_000)
      assertAllStored(answers, count)
      yield* assertLogs(connection, expected)
    }),
  )

  it.effect("a shard that is down holds up its own objects only", () =>
    Effect.gen(function* () {
      const { connection } = yield* ForeignClient
      const [, broken] = (yield* PostgresServers).shards
      yield* startWorkerProcess
      const count = 1_500
      const up = planAppends({ prefix: "up-", count, objects: yield* idsOn("shard-a", 3_000, 30) })
      const down = planAppends({ prefix: "down-", count, objects: yield* idsOn("shard-b", 4_000, 30) })
      const upAnswers = yield* collectAnswers(connection, "up-")
      const downAnswers = yield* collectAnswers(connection, "down-")
      yield* broken!.control.stop("SIGQUIT")
      // In turn, so that those of the broken shard are in the way of the others.
      yield* publishInSequence(
        connection,
        up.bodies.flatMap((body, i) => [down.bodies[i]!, body]),
      )
      yield* upAnswers.until(count, 10_000)
      assert.strictEqual(downAnswers.byRequest.size, 0)
      yield* broken!.control.start
      yield* downAnswers.until(count, 20_000)
      assertAllStored(upAnswers, count)
      assertAllStored(downAnswers, count)
      yield* assertLogs(connection, new Map([...up.expected, ...down.expected]))
    }),
  )

  it.effect("an entry that the shard refuses is a dead letter, and its neighbours are stored", () =>
    Effect.gen(function* () {
      const { connection } = yield* ForeignClient
      const shard = (yield* PostgresServers).shards[1]!
      yield* startWorkerProcess
      yield* onShard(shard, (sql) =>
        Effect.andThen(
          sql`create function refuse_poison() returns trigger language plpgsql as $$
            begin raise exception 'poison' using errcode = '22000'; end $$`,
          sql`create trigger refuse_poison before insert on log_entries
            for each row when (new.log = 'poison') execute function refuse_poison()`,
        ),
      )
      yield* Effect.addFinalizer(() => Effect.ignore(onShard(shard, (sql) => sql`drop function refuse_poison cascade`)))
      const dead: Array<{ readonly body: string; readonly code: string }> = []
      const subscription = connection.subscribe("dead.logs", {
        callback: (_, message) =>
          void dead.push({ body: message.string(), code: message.headers!.get("Objectlog-Code") }),
      })
      yield* Effect.addFinalizer(() => Effect.sync(() => subscription.unsubscribe()))
      const prefix = "poison-"
      const ids = yield* idsOn("shard-b", 5_000, 5)
      const poisons = new Set([7, 250, 499])
      const expected = new Map<number, Array<string>>(ids.map((id) => [id, []]))
      const answers = yield* collectAnswers(connection, prefix)
      const bodies = idsFrom(0, 500).map((i) => {
        const id = ids[i % ids.length]!
        if (poisons.has(i)) return JSON.stringify({ id, log: "poison", request_id: `${prefix}${i}` })
        expected.get(id)!.push(String(i))
        return appendBody(id, prefix, String(i))
      })
      yield* publishInSequence(connection, bodies)
      yield* answers.until(500, 15_000)
      for (const [request, events] of answers.byRequest) {
        assert.lengthOf(events, 1, request)
        const poison = poisons.has(Number(request.slice(prefix.length)))
        assert.strictEqual(events[0]!.error?.code, poison ? "entry_rejected" : undefined, request)
        assert.strictEqual(events[0]!.status, poison ? "error" : "ok", request)
      }
      // A dead letter is confirmed before its event is sent.
      yield* Effect.promise(() => connection.flush())
      assert.deepStrictEqual(
        dead.toSorted((a, b) => a.body.localeCompare(b.body)),
        [...poisons]
          .map((i) => ({ body: bodies[i]!, code: "entry_rejected" }))
          .toSorted((a, b) => a.body.localeCompare(b.body)),
      )
      yield* assertLogs(connection, expected)
    }),
  )

  it.effect("the broker is killed in the middle of a flood and comes back: what it stored is there once", () =>
    Effect.gen(function* () {
      const nats = yield* NatsServer
      yield* startWorkerProcess
      const connection = yield* Effect.acquireRelease(
        Effect.promise(() => connectTo(nats.url, { maxReconnectAttempts: -1, reconnectTimeWait: 50 })),
        (nc) => Effect.promise(() => nc.close()),
      )
      const js = jetstream(connection)
      // What the broker sent and nobody received comes again when it loses patience; a real service has 30 s.
      yield* setAckWait(connection, 2_000)
      const prefix = "broker-"
      const objects = idsFrom(6_000, 100)
      const rounds = 50
      const count = objects.length * rounds
      const { bodies, expected } = planAppends({ prefix, count, objects })
      let retried = 0
      /** Until it is stored. The next of the same object is published after that only, so their order is known. */
      const publish = (i: number) =>
        Effect.tryPromise(() => js.publish("logs", bodies[i]!, { msgID: `${prefix}${i}`, timeout: 1_000 })).pipe(
          Effect.tapError(() => Effect.sync(() => retried++)),
          Effect.retry(Schedule.spaced("50 millis")),
        )
      const restart = Effect.andThen(nats.control.stop("SIGKILL"), nats.control.start)
      yield* Effect.forEach(
        idsFrom(0, rounds),
        (round) => {
          const all = Effect.forEach(objects.keys(), (i) => publish(round * objects.length + i), {
            concurrency: "unbounded",
            discard: true,
          })
          return round === 20 ? Effect.all([all, restart], { concurrency: "unbounded", discard: true }) : all
        },
        { discard: true },
      ).pipe(within("everything is published", 20_000))
      const byRequest = yield* storedAnswers(connection, prefix, count).pipe(within("everything is answered", 20_000))
      assert.strictEqual(byRequest.size, count)
      for (const [request, events] of byRequest) {
        for (const event of events) assert.strictEqual(event.status, "ok", request)
        assert.strictEqual(new Set(events.map((event) => event.position)).size, 1, request)
      }
      yield* assertLogs(connection, expected)
      assert.isAbove(retried, 0, "the outage met nobody")
    }),
  )
})
