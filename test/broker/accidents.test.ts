/** Streams and consumers that are deleted, emptied, changed or restarted under a running broker service, on a real server. */
import { AckPolicy, DeliverPolicy, jetstream, type JetStreamManager, jetstreamManager } from "@nats-io/jetstream"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, FileSystem, Layer, Logger, Queue, Schedule, Stream } from "effect"
import { Broker, type Delivery } from "../../src/broker/Broker.ts"
import { NatsLive } from "../../src/broker/NatsLive.ts"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { basePort, temporary } from "../../bench/servers/privateServers.ts"
import { connectTo } from "../../bench/servers/connectTo.ts"

const settings = {
  logsTopic: "logs",
  queryTopic: "query",
  responseTopic: "response",
  deadTopic: "dead",
  replicas: 1,
  connectionName: "test",
}

/** A server with its folder, a broker service on it, a client of its own, and what the service logs. */
const withBroker = <A, E>(
  test: (world: {
    readonly jsm: JetStreamManager
    readonly publish: (payload: string) => Effect.Effect<number>
    readonly taken: Queue.Dequeue<Delivery>
    readonly logged: ReadonlyArray<string>
    readonly dataDir: string
  }) => Effect.Effect<A, E, Broker | NatsServer | FileSystem.FileSystem>,
) =>
  Effect.gen(function* () {
    const dataDir = yield* temporary
    const logged: Array<string> = []
    const logger = Logger.layer([Logger.make(({ message }) => void logged.push(String(message)))])
    yield* Effect.gen(function* () {
      const { url } = yield* NatsServer
      const connection = yield* Effect.acquireRelease(
        Effect.promise(() => connectTo(url, { maxReconnectAttempts: -1, reconnectTimeWait: 100 })),
        (open) => Effect.promise(() => open.close()),
      )
      const jsm = yield* Effect.promise(() => jetstreamManager(connection, { checkAPI: false }))
      const broker = yield* Broker
      const taken = yield* Queue.unbounded<Delivery>()
      yield* broker.appends.pipe(
        Stream.runForEachArray((chunk) => Queue.offerAll(taken, chunk)),
        Effect.forkScoped,
      )
      yield* test({
        jsm,
        taken,
        logged,
        dataDir,
        // Storing fails while there is no stream; the worker makes it again.
        publish: (payload) =>
          Effect.tryPromise(() => jetstream(connection).publish("logs", payload, { timeout: 2_000 })).pipe(
            Effect.map(({ seq }) => seq),
            Effect.retry(Schedule.spaced("50 millis")),
            Effect.orDie,
          ),
      })
    }).pipe(
      Effect.provide(
        Layer.unwrap(Effect.map(NatsServer, ({ url }) => NatsLive({ ...settings, servers: url }))).pipe(
          Layer.provideMerge(NatsServer.layer({ dataDir, port: basePort })),
          Layer.provideMerge(logger),
        ),
      ),
    )
  }).pipe(Effect.scoped, Effect.provide(NodeServices.layer))

const text = (delivery: Delivery) => Buffer.from(delivery.payload).toString()

const promised = <A>(run: () => Promise<A>) => Effect.promise(run)

/** Asks again until it is so. */
const until = (ask: () => Promise<boolean>) =>
  Effect.promise(ask).pipe(
    Effect.flatMap((isSo) => (isSo ? Effect.void : Effect.fail("not yet"))),
    Effect.retry(Schedule.spaced("20 millis")),
    Effect.timeout("30 seconds"),
    Effect.orDie,
  )

const ackPending = async (jsm: JetStreamManager) =>
  (await jsm.consumers.info("objectlog_logs", "objectlog")).num_ack_pending

describe("provisioning accidents", () => {
  it.live("an acknowledgement for a stream that was made again does not settle a message of the new one", () =>
    withBroker(({ jsm, publish, taken }) =>
      Effect.gen(function* () {
        yield* publish("old one")
        const old = yield* Queue.take(taken)
        yield* promised(() => jsm.streams.delete("objectlog_logs"))
        assert.strictEqual(yield* publish("new one"), 1)
        const fresh = yield* Queue.take(taken)
        assert.deepStrictEqual([text(fresh), fresh.seq, old.seq], ["new one", 1, 1])
        assert.notStrictEqual(fresh.timestamp, old.timestamp)
        old.ack()
        yield* publish("another")
        const another = yield* Queue.take(taken)
        another.ack()
        // What came after it has arrived at the server, so it has too.
        yield* until(async () => (await jsm.consumers.info("objectlog_logs", "objectlog")).num_pending === 0)
        yield* until(async () => (await ackPending(jsm)) === 1)
        fresh.ack()
        yield* until(async () => (await ackPending(jsm)) === 0)
      }),
    ),
  )

  it.live("streams that are published to are made again when they are missing", () =>
    withBroker(({ jsm, publish, taken }) =>
      Effect.gen(function* () {
        const broker = yield* Broker
        yield* publish("one")
        const one = yield* Queue.take(taken)
        const attempts = Effect.retry(Schedule.spaced("100 millis"))
        for (const name of ["objectlog_response", "objectlog_dead", "objectlog_logs_parked"]) {
          yield* promised(() => jsm.streams.delete(name))
        }
        yield* Effect.all(
          [
            attempts(broker.publish([{ payload: "e", messageId: "1", replyTo: undefined }])),
            attempts(broker.deadLetter(one, { code: "invalid_json", message: "no" })),
            attempts(broker.park("appends", "a", [one])),
          ],
          { concurrency: "unbounded" },
        )
        for (const name of ["objectlog_response", "objectlog_dead", "objectlog_logs_parked"]) {
          assert.strictEqual((yield* promised(() => jsm.streams.info(name))).state.messages, 1, name)
        }
        const [parked] = yield* broker.parked("appends", "a").pipe(Stream.take(1), Stream.runCollect)
        assert.deepStrictEqual([parked!.seq, parked!.timestamp], [one.seq, one.timestamp])
      }),
    ),
  )

  it.live("a stream that is purged goes on with the next message", () =>
    withBroker(({ jsm, publish, taken }) =>
      Effect.gen(function* () {
        yield* publish("one")
        const one = yield* Queue.take(taken)
        yield* promised(() => jsm.streams.purge("objectlog_logs"))
        one.ack()
        assert.strictEqual(yield* publish("two"), 2)
        const two = yield* Queue.take(taken)
        assert.strictEqual(text(two), "two")
        two.ack()
        yield* until(async () => (await ackPending(jsm)) === 0)
      }),
    ),
  )

  it.live("a consumer that would skip or drop messages is not pulled from; put right, nothing is missing", () =>
    withBroker(({ jsm, logged, publish, taken }) =>
      Effect.gen(function* () {
        yield* publish("one")
        ;(yield* Queue.take(taken)).ack()
        yield* until(async () => (await ackPending(jsm)) === 0)
        yield* promised(async () => {
          await jsm.consumers.delete("objectlog_logs", "objectlog")
          await jsm.consumers.add("objectlog_logs", {
            durable_name: "objectlog",
            ack_policy: AckPolicy.Explicit,
            deliver_policy: DeliverPolicy.New,
            max_deliver: 1,
            filter_subject: "logs",
          })
        })
        yield* publish("two")
        yield* until(async () => logged.some((line) => line.includes("expected delivery of all messages, got new")))
        assert.strictEqual((yield* promised(() => jsm.consumers.info("objectlog_logs", "objectlog"))).num_pending, 1)
        yield* promised(() => jsm.consumers.delete("objectlog_logs", "objectlog"))
        const seen = new Set<string>()
        while (!seen.has("two")) {
          const delivery = yield* Queue.take(taken)
          seen.add(text(delivery))
          delivery.ack()
        }
      }),
    ),
  )

  it.live("a consumer that is ahead of its stream begins anew, so that nothing is skipped", () =>
    withBroker(({ dataDir, jsm, publish, taken }) =>
      Effect.gen(function* () {
        const fs = yield* FileSystem.FileSystem
        const { control } = yield* NatsServer
        for (let i = 0; i < 20; i++) {
          yield* publish(`old ${i}`)
          ;(yield* Queue.take(taken)).ack()
        }
        yield* until(async () => (await ackPending(jsm)) === 0)
        // The messages are lost and the consumer is not, as after a disk that was restored in part.
        yield* control.stop("SIGTERM")
        yield* fs.remove(`${dataDir}/jetstream/$G/streams/objectlog_logs/msgs`, { recursive: true })
        yield* control.start
        yield* publish("new")
        const fresh = yield* Queue.take(taken)
        assert.strictEqual(text(fresh), "new")
        fresh.ack()
      }),
    ),
  )

  it.live("JetStream that is switched off and on again: the service waits and goes on", () =>
    withBroker(({ dataDir, jsm, publish, taken }) =>
      Effect.gen(function* () {
        const fs = yield* FileSystem.FileSystem
        const { control } = yield* NatsServer
        yield* publish("one")
        const one = yield* Queue.take(taken)
        const file = `${dataDir}/nats-server.conf`
        const configuration = yield* fs.readFileString(file)
        yield* control.stop("SIGTERM")
        yield* fs.writeFileString(file, configuration.replace(/^jetstream .*$/m, ""))
        yield* control.start
        const broker = yield* Broker
        assert.strictEqual(
          (yield* Effect.flip(broker.publish([{ payload: "e", messageId: "1", replyTo: undefined }])))._tag,
          "BrokerUnavailable",
        )
        yield* control.stop("SIGTERM")
        yield* fs.writeFileString(file, configuration)
        yield* control.start
        one.ack()
        yield* publish("two")
        let delivery = yield* Queue.take(taken)
        while (text(delivery) !== "two") delivery = yield* Queue.take(taken)
        delivery.ack()
        // The acknowledgement from before, held until the stream was known to be the same, has counted.
        yield* until(async () => (await ackPending(jsm)) === 0)
      }),
    ),
  )
})
