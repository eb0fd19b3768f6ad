/** A broker whose store is full, by its own limit: what frees the first byte, and who gets it. */
import { jetstream, jetstreamManager } from "@nats-io/jetstream"
import type { NatsConnection } from "@nats-io/transport-node"
import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Layer, Schedule, type Scope } from "effect"
import { Broker } from "../../src/broker/Broker.ts"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { runWorker } from "../../src/pipeline/Worker.ts"
import { connectTo } from "../../bench/servers/connectTo.ts"
import { TestNats, TestPostgres } from "../../bench/servers/privateServers.ts"
import { workerLayers } from "./service.ts"
import { appendBody, collectAnswers } from "../foreign/ForeignClient.ts"
import { within } from "../foreign/within.ts"

const mebibyte = 1024 ** 2

const client: Effect.Effect<NatsConnection, never, Scope.Scope | NatsServer> = Effect.flatMap(NatsServer, ({ url }) =>
  Effect.acquireRelease(
    Effect.promise(() => connectTo(url)),
    (connection) => Effect.promise(() => connection.close()),
  ),
)

/** A worker in the scope, and its broker. */
const startWorker = Effect.gen(function* () {
  const context = yield* Layer.build(Layer.fresh(workerLayers))
  yield* runWorker({ responseTopic: "response", debug: false }).pipe(Effect.provideContext(context), Effect.forkScoped)
  return Context.get(context, Broker)
})

/** A worker that was there, made the streams and the reserve, and is gone. */
const workerBefore = Effect.scoped(
  Effect.gen(function* () {
    yield* Layer.build(Layer.fresh(workerLayers))
    const jsm = yield* Effect.flatMap(client, (connection) => Effect.promise(() => jetstreamManager(connection)))
    yield* Effect.tryPromise(() => jsm.streams.info("objectlog_logs_reserve")).pipe(
      Effect.filterOrFail(({ state }) => state.bytes > 10 * mebibyte),
      Effect.retry(Schedule.spaced("20 millis")),
      within("the reserve is made", 10_000),
    )
  }),
)

/** Publishes one after the other; a refused one is sent again at once. How many were refused. */
const push = (connection: NatsConnection, bodies: ReadonlyArray<string>) =>
  Effect.promise(async () => {
    const js = jetstream(connection)
    let refused = 0
    for (const body of bodies) {
      while (
        !(await js.publish("logs", body, { timeout: 5_000 }).then(
          () => true,
          () => false,
        ))
      )
        refused++
    }
    return refused
  })

/** Takes a part of the store, for a stream that has nothing to do with us. */
const takeRoom = (connection: NatsConnection, megabytes: number) =>
  Effect.promise(async () => {
    await (await jetstreamManager(connection)).streams.add({ name: "others", subjects: ["others"] })
    for (let i = 0; i < 2 * megabytes; i++) await jetstream(connection).publish("others", new Uint8Array(500_000))
  })

/** Publishes until the store refuses; how many were stored. */
const fill = (connection: NatsConnection, body: (i: number) => string) =>
  Effect.promise(async () => {
    const js = jetstream(connection)
    for (let stored = 0; ;) {
      const answers = await Promise.allSettled(
        Array.from({ length: 500 }, (_, i) => js.publish("logs", body(stored + i), { timeout: 10_000 })),
      )
      const refused = answers.findIndex(({ status }) => status === "rejected")
      if (refused < 0) stored += answers.length
      else if (answers.slice(refused).some(({ status }) => status === "fulfilled"))
        throw new Error("stored after a refusal")
      else return stored + refused
    }
  })

const storeOf = (bytes: number) => Layer.mergeAll(TestNats.small(bytes), TestPostgres.layer(2))

const hasRoomAgain = (broker: Broker["Service"]) =>
  Effect.sync(broker.connection).pipe(
    Effect.repeat({ until: ({ isStoring }) => isStoring, schedule: Schedule.spaced("50 millis") }),
    within("the store has room", 30_000, () => JSON.stringify(broker.connection().troubles)),
  )

describe("a full store", () => {
  it.live(
    "large appends beyond what the store holds are all answered while publishers push",
    () =>
      Effect.gen(function* () {
        const broker = yield* startWorker
        const answers = yield* collectAnswers(yield* client, "p")
        const publishers = yield* Effect.all([client, client])
        const text = "x".repeat(900_000)
        const seen = new Set<string>()
        yield* Effect.sync(() => broker.connection().troubles.forEach(({ text }) => seen.add(text))).pipe(
          Effect.repeat(Schedule.spaced("20 millis")),
          Effect.forkScoped,
        )
        const refused = yield* Effect.all(
          publishers.map((each, p) => {
            const bodies = Array.from({ length: 50 }, (_, i) => ({ id: i % 10, log: text, request_id: `p${p}-${i}` }))
            return push(
              each,
              bodies.map((body) => JSON.stringify(body)),
            )
          }),
          { concurrency: "unbounded" },
        ).pipe(within("publishers get everything stored", 90_000, () => [...seen].join()))
        yield* answers.until(100, 60_000)
        assert.isAbove(refused[0]! + refused[1]!, 0, "the store was full")
        assert.deepStrictEqual([...seen], ["its store is full: insufficient resources"])
        yield* hasRoomAgain(broker)
      }).pipe(Effect.scoped, Effect.provide(storeOf(40 * mebibyte))),
    240_000,
  )

  it.live(
    "a store that is full of requests of which none is done: all are answered, a refused one at their head too",
    () =>
      Effect.gen(function* () {
        yield* workerBefore
        const connection = yield* client
        yield* takeRoom(connection, 27)
        yield* Effect.promise(() => jetstream(connection).publish("logs", `{"id":1,"log":7,"request_id":"b-bad"}`))
        // Each of them is smaller than its event.
        const stored = yield* fill(connection, (i) => appendBody(i % 100, "b", String(i)))
        const answers = yield* collectAnswers(connection, "b")
        const broker = yield* startWorker
        yield* answers.until(stored + 1, 90_000)
        assert.strictEqual(answers.byRequest.get("b-bad")?.[0]?.error?.code, "invalid_message")
        yield* hasRoomAgain(broker)
        const jsm = yield* Effect.promise(() => jetstreamManager(connection))
        const letters = yield* Effect.promise(() => jsm.streams.info("objectlog_dead"))
        assert.strictEqual(letters.state.messages, 1)
      }).pipe(Effect.scoped, Effect.provide(storeOf(40 * mebibyte))),
    240_000,
  )
})
