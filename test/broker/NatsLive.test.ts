/** The live broker on a real nats-server: the contract, and what only a real server can do. */
import { type ConsumerInfo, jetstream, jetstreamManager, RetentionPolicy } from "@nats-io/jetstream"
import { headers, type NatsConnection } from "@nats-io/transport-node"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Latch, Layer, Schedule, Stream } from "effect"
import { connect as netConnect } from "node:net"
import { Broker, type BrokerUnavailable, type Delivery } from "../../src/broker/Broker.ts"
import { intakeBytes, parkedShareBytes } from "../../src/broker/intakeLimits.ts"
import { NatsLive } from "../../src/broker/NatsLive.ts"
import { Outgoing } from "../../src/nats/Outgoing.ts"
import { retryMessage } from "../../src/broker/parked.ts"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { TestNats } from "../../bench/servers/privateServers.ts"
import { brokerContract, type BrokerProbe } from "./brokerContract.ts"
import { connectTo } from "../../bench/servers/connectTo.ts"

const live = Layer.unwrap(
  Effect.map(NatsServer, ({ url }) =>
    NatsLive({
      servers: url,
      logsTopic: "logs",
      queryTopic: "query",
      responseTopic: "response",
      deadTopic: "dead",
      replicas: 1,
      connectionName: "test",
    }),
  ),
)

const client = Effect.flatMap(NatsServer, ({ url }) =>
  Effect.acquireRelease(
    Effect.promise(() => connectTo(url, { maxReconnectAttempts: -1 })),
    (connection) => Effect.promise(() => connection.close()),
  ),
)

/** Reads a stream from its start, until `count` messages are there. */
const stored = (connection: NatsConnection, stream: string, count: number) =>
  Effect.promise(async () => {
    const consumer = await jetstream(connection).consumers.get(stream)
    const all: Array<{ subject: string; payload: string; header: (name: string) => string }> = []
    const messages = await consumer.fetch({ max_messages: count, expires: 5_000 })
    for await (const message of messages) {
      all.push({
        subject: message.subject,
        payload: message.string(),
        header: (name) => message.headers?.get(name) ?? "",
      })
    }
    return all
  })

const probeOf = (connection: NatsConnection): BrokerProbe => ({
  publishAppend: (payload, values = {}) =>
    Effect.promise(async () => {
      const all = headers()
      for (const [name, value] of Object.entries(values)) all.set(name, value)
      await jetstream(connection).publish("logs", payload, { headers: all })
    }),
  events: (count) =>
    Effect.map(stored(connection, "objectlog_response", count), (all) =>
      all.map(({ subject, payload }) => ({ subject, payload })),
    ),
  traces: (count) =>
    Effect.map(stored(connection, "objectlog_response", count), (all) =>
      all.map(({ header }) => [header("traceparent"), header("tracestate")] as const),
    ),
  retry: (original, outcome) =>
    Effect.promise(async () => {
      const headers = () => Object.entries(original.headers)
      const message = retryMessage("logs", { ...original, headers }, outcome, connection.info!.max_payload)!
      new Outgoing(connection).publish(message.subject, undefined, message.headers, message.payload)
      await connection.flush()
    }),
  deadLetters: (count) =>
    Effect.map(stored(connection, "objectlog_dead", count), (all) =>
      all.map(({ payload, header }) => ({
        payload,
        code: header("Objectlog-Code"),
        reason: header("Objectlog-Reason"),
      })),
    ),
})

const onServer = <A, E>(test: Effect.Effect<A, E, Broker | NatsServer>) =>
  test.pipe(Effect.provide(Layer.provideMerge(live, TestNats.layer)))

const takeAppends = (count: number) =>
  Broker.use((broker) => broker.appends.pipe(Stream.take(count), Stream.runCollect))

describe("NatsLive", () => {
  brokerContract((test) => onServer(Effect.scoped(Effect.flatMap(client, (connection) => test(probeOf(connection))))))

  it.live("several workers may provision an empty server at the same moment", () =>
    Effect.gen(function* () {
      yield* Effect.all(
        Array.from({ length: 4 }, () => Layer.build(Layer.fresh(live))),
        { concurrency: "unbounded" },
      )
      const connection = yield* client
      const jsm = yield* Effect.promise(() => jetstreamManager(connection))
      const names = yield* Effect.promise(async () => {
        const all: Array<string> = []
        for await (const info of jsm.streams.list()) all.push(info.config.name)
        // Made beside the work.
        return all.filter((name) => name !== "objectlog_logs_reserve")
      })
      assert.sameMembers(names, [
        "objectlog_logs",
        "objectlog_logs_parked",
        "objectlog_query",
        "objectlog_response",
        "objectlog_dead",
      ])
    }).pipe(Effect.scoped, Effect.provide(TestNats.layer)),
  )

  it.live("a stream that captures the subject is used under its own name, and not changed", () =>
    Effect.gen(function* () {
      const connection = yield* client
      const jsm = yield* Effect.promise(() => jetstreamManager(connection))
      yield* Effect.promise(() => jsm.streams.add({ name: "MINE", subjects: ["logs"], max_msg_size: 77_000 }))
      yield* Layer.build(live)
      const info = yield* Effect.promise(() => jsm.streams.info("MINE"))
      assert.deepInclude(info.config, { max_msg_size: 77_000, subjects: ["logs"] })
      assert.strictEqual(
        (yield* Effect.promise(() => jsm.consumers.info("MINE", "objectlog"))).config.filter_subject,
        "logs",
      )
    }).pipe(Effect.scoped, Effect.provide(TestNats.layer)),
  )

  it.live("a stream that can't serve stops the start and says why", () =>
    Effect.gen(function* () {
      const connection = yield* client
      const jsm = yield* Effect.promise(() => jetstreamManager(connection))
      yield* Effect.promise(() =>
        jsm.streams.add({ name: "Q", subjects: ["logs"], retention: RetentionPolicy.Workqueue }),
      )
      const error = yield* Effect.flip(Layer.build(live))
      assert.strictEqual(error.message, "stream Q: expected retention by limits, got workqueue")
    }).pipe(Effect.scoped, Effect.provide(TestNats.layer)),
  )

  it.live("tells which streams and consumers are missing", () =>
    onServer(
      Effect.gen(function* () {
        const broker = yield* Broker
        const connection = yield* client
        const jsm = yield* Effect.promise(() => jetstreamManager(connection))
        yield* Effect.promise(() => jsm.consumers.delete("objectlog_logs", "objectlog"))
        for (const name of ["query", "dead"]) yield* Effect.promise(() => jsm.streams.delete(`objectlog_${name}`))
        const state = yield* broker.state
        assert.isUndefined(state.appends)
        assert.isUndefined(state.queries)
        assert.deepStrictEqual(state.problems, [
          "the consumer objectlog of stream objectlog_logs is missing",
          "the stream for query is missing",
          "the stream for dead.> is missing",
        ])
      }).pipe(Effect.scoped),
    ),
  )

  it.live("a stream that is deleted under a running worker is made again, and deliveries go on", () =>
    onServer(
      Effect.scoped(
        Effect.gen(function* () {
          const connection = yield* client
          const probe = probeOf(connection)
          const jsm = yield* Effect.promise(() => jetstreamManager(connection))
          const broker = yield* Broker
          const seen: Array<string> = []
          yield* broker.appends.pipe(
            Stream.runForEach((delivery) =>
              Effect.sync(() => {
                seen.push(Buffer.from(delivery.payload).toString())
                delivery.ack()
              }),
            ),
            Effect.forkScoped,
          )
          yield* probe.publishAppend("before")
          yield* Effect.promise(() => jsm.streams.delete("objectlog_logs"))
          // Storing fails until the worker has made the stream again.
          yield* Effect.tryPromise(() => jetstream(connection).publish("logs", "after")).pipe(
            Effect.retry({ schedule: Schedule.spaced("50 millis"), times: 400 }),
            Effect.timeout("20 seconds"),
          )
          while (!seen.includes("after")) yield* Effect.sleep("10 millis")
        }),
      ).pipe(Effect.timeout("25 seconds")),
    ),
  )

  it.live(
    "holds no more bytes than it asked for, headers with them; of what was parked, no more than is being taken",
    () =>
      onServer(
        Effect.gen(function* () {
          const connection = yield* client
          const broker = yield* Broker
          const jsm = yield* Effect.promise(() => jetstreamManager(connection))
          const probe = probeOf(connection)
          const size = 60_000
          const publish = (count: number) =>
            Effect.forEach(Array.from({ length: count }), () => probe.publishAppend("x", { note: "h".repeat(size) }), {
              concurrency: "unbounded",
              discard: true,
            })
          yield* publish(120)
          const taken = yield* takeAppends(120)
          assert.deepStrictEqual(yield* broker.park("appends", "a", taken), [])
          for (const delivery of taken) delivery.ack()
          yield* publish(500)

          /** What one consumer has brought while somebody holds the first chunk, once it asks for no more. */
          const brought = (stream: string, consumer: string, deliveries: Stream.Stream<Delivery, BrokerUnavailable>) =>
            Effect.gen(function* () {
              const arrived = yield* Latch.make()
              yield* deliveries.pipe(
                Stream.runForEachArray(() => Effect.andThen(arrived.open, Effect.never)),
                Effect.forkScoped,
              )
              yield* arrived.await
              // Three times the same: each answer on the worker's connection comes after what it was sent before, and is followed by what
              // it asks for then.
              let last: ConsumerInfo | undefined
              let same = 0
              while (same < 3) {
                yield* broker.state
                const info = yield* Effect.promise(() => jsm.consumers.info(stream, consumer))
                same = info.num_waiting === 0 && info.num_ack_pending === last?.num_ack_pending ? same + 1 : 0
                last = info
              }
              return last!
            })
          const parked = yield* brought("objectlog_logs_parked", "appends_a", broker.parked("appends", "a"))
          assert.isAbove(parked.num_pending, 0)
          assert.isAtMost(parked.num_ack_pending, parkedShareBytes(1) / size)
          const fresh = yield* brought("objectlog_logs", "objectlog", broker.appends)
          assert.isAtMost(fresh.num_ack_pending, Math.ceil((2 * intakeBytes) / size) + 1)
        }).pipe(Effect.scoped),
      ),
  )

  it.live("dead letters near max_payload are kept in parts; headers that the broker acts on are renamed", () =>
    onServer(
      Effect.scoped(
        Effect.gen(function* () {
          const connection = yield* client
          const probe = probeOf(connection)
          const broker = yield* Broker
          const large = "x".repeat(connection.info!.max_payload - 200)
          yield* probe.publishAppend("small", { "Nats-Expected-Stream": "objectlog_logs", custom: "kept" })
          yield* probe.publishAppend(large, { custom: "kept" })
          const [small, big] = yield* takeAppends(2)
          yield* broker.deadLetter(small!, { code: "invalid_json", message: "a\nb" })
          yield* broker.deadLetter(big!, { code: "invalid_json", message: "no" })
          const [letter, part1, part2] = yield* stored(connection, "objectlog_dead", 3)
          assert.deepStrictEqual(
            ["Original-Nats-Expected-Stream", "custom", "Objectlog-Reason", "Objectlog-Subject"].map((name) =>
              letter!.header(name),
            ),
            ["objectlog_logs", "kept", "a?b", "logs"],
          )
          assert.deepStrictEqual([part1!.header("Objectlog-Part"), part2!.header("Objectlog-Part")], ["1/2", "2/2"])
          const whole = part1!.payload + part2!.payload
          const size = Number(part1!.header("Objectlog-Headers-Size"))
          assert.deepStrictEqual(JSON.parse(whole.slice(0, size)), [["custom", ["kept"]]])
          assert.isTrue(whole.slice(size) === large)
        }),
      ),
    ),
  )

  it.live("a header that the client library refuses to read stops nobody", () =>
    onServer(
      Effect.gen(function* () {
        const { port, url } = yield* NatsServer
        const { password: pass, username: user } = new URL(url)
        const broker = yield* Broker
        const block = "NATS/1.0\r\nbad name\u0001: x\r\nNats-Msg-Id: m1\r\nnats-msg-id: m2\r\n\r\n"
        yield* Effect.callback<void>((resume) => {
          const size = Buffer.byteLength(block)
          const socket = netConnect(port, "127.0.0.1", () => {
            socket.end(
              `CONNECT ${JSON.stringify({ verbose: false, headers: true, user, pass })}\r\nHPUB logs ${size} ${size + 4}\r\n${block}body\r\nPING\r\n`,
            )
          })
          socket.on("data", () => undefined)
          socket.on("close", () => resume(Effect.void))
          socket.on("error", () => undefined)
        })
        const [odd] = yield* takeAppends(1)
        assert.strictEqual(odd!.header("Nats-Msg-Id"), "m1")
        assert.strictEqual(odd!.header("bad name\u0001"), "x")
        assert.strictEqual(Buffer.from(odd!.payload).toString(), "body")
        yield* broker.deadLetter(odd!, { code: "invalid_json", message: "no" })
        odd!.ack()
        const count = yield* Effect.promise(async () => {
          const connection = await connectTo(url)
          const jsm = await jetstreamManager(connection)
          const info = await jsm.streams.info("objectlog_dead")
          await connection.close()
          return info.state.messages
        })
        assert.strictEqual(count, 1)
      }),
    ),
  )

  it.live("a stream of our name that captures something else stops the start and says why", () =>
    Effect.gen(function* () {
      const connection = yield* client
      const jsm = yield* Effect.promise(() => jetstreamManager(connection))
      yield* Effect.promise(() => jsm.streams.add({ name: "objectlog_logs", subjects: ["elsewhere"] }))
      const error = yield* Effect.flip(Layer.build(live))
      assert.strictEqual(error.message, "stream objectlog_logs: exists and does not capture logs")
    }).pipe(Effect.scoped, Effect.provide(TestNats.layer)),
  )

  it.live("a stream that captures only a part stops the start and says why", () =>
    Effect.gen(function* () {
      const connection = yield* client
      const jsm = yield* Effect.promise(() => jetstreamManager(connection))
      yield* Effect.promise(() => jsm.streams.add({ name: "PART", subjects: ["dead.logs"] }))
      const error = yield* Effect.flip(Layer.build(live))
      assert.strictEqual(error.message, "stream PART: expected it to capture dead.>, got dead.logs")
    }).pipe(Effect.scoped, Effect.provide(TestNats.layer)),
  )

  it.live("a copy for an inbox arrives before the publisher hears of its event", () =>
    onServer(
      Effect.scoped(
        Effect.gen(function* () {
          const connection = yield* client
          const broker = yield* Broker
          const copies: Array<string> = []
          connection.subscribe("_INBOX.test.*", {
            callback: (_, message) => {
              copies.push(`${message.string()} ${message.headers?.get("Nats-Msg-Id")}`)
            },
          })
          yield* Effect.promise(() => connection.flush())
          yield* broker.publish([{ payload: "p", messageId: "id", replyTo: "_INBOX.test.1" }])
          // Whatever the server had taken by then, it sends before the answer to this.
          yield* Effect.promise(() => connection.flush())
          assert.deepStrictEqual(copies, ["p id"])
        }),
      ),
    ),
  )

  it.live("20,000 events are all stored, once, also when the server restarts meanwhile", () =>
    onServer(
      Effect.scoped(
        Effect.gen(function* () {
          const { control } = yield* NatsServer
          const broker = yield* Broker
          const events = Array.from({ length: 20_000 }, (_, i) => ({
            payload: `{"n":${i}}`,
            messageId: `m${i}`,
            replyTo: undefined,
          }))
          const publish = broker.publish(events).pipe(Effect.retry({ times: 20 }))
          yield* Effect.all([publish, Effect.andThen(control.stop("SIGKILL"), control.start)], { concurrency: 2 })
          const connection = yield* client
          const jsm = yield* Effect.promise(() => jetstreamManager(connection))
          const info = yield* Effect.promise(() => jsm.streams.info("objectlog_response"))
          assert.strictEqual(info.state.messages, 20_000)
        }),
      ),
    ),
  )
})
