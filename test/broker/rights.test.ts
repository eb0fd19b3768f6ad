/** What a broker refuses the right to, or limits: it is said, seen, and over when the right is given. */
import { AckPolicy, type ConsumerConfig, type JetStreamManager } from "@nats-io/jetstream"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Layer, Queue, Stream } from "effect"
import { Broker, type Operation } from "../../src/broker/Broker.ts"
import { ConfiguredNats } from "../embedded/ConfiguredNats.ts"
import { live, logInto, until, withBroker } from "./onServer.ts"

/** A worker with some permissions, and somebody who may do everything. */
const permitting = (permissions: string) => `authorization: { users: [
  { user: worker, password: w, permissions: { ${permissions} } }
  { user: all, password: a }
] }`

const allowAll = 'publish: ">", subscribe: ">"'
const deny = (...subjects: ReadonlyArray<string>) =>
  `publish: { deny: [${subjects.map((subject) => `"${subject}"`).join(", ")}] }, subscribe: ">"`

const refusedNow = Broker.useSync((broker) =>
  broker
    .connection()
    .troubles.filter(({ text }) => text.startsWith("refused"))
    .map(({ disabling, text }) => `${disabling ? "" : "(not disabling) "}${text}`),
)

const untilRefused = (operation: Operation) =>
  until(
    `${operation} is refused`,
    Effect.map(refusedNow, (all) => all.some((text) => text.includes(`refused (${operation})`))),
  )

const untilNoneIsRefused = until(
  "nothing is refused",
  Effect.map(refusedNow, (all) => all.length === 0),
)

/** Another consumer in the place of the intake's, which is being pulled from. */
const replaceConsumer = Effect.fnUntraced(function* (jsm: JetStreamManager, changes: Partial<ConsumerConfig>) {
  const info = Effect.promise(() => jsm.consumers.info("objectlog_logs", "objectlog"))
  yield* until(
    "it is pulled from",
    Effect.map(info, ({ num_waiting }) => num_waiting > 0),
  )
  const { config } = yield* info
  yield* Effect.promise(async () => {
    await jsm.consumers.delete("objectlog_logs", "objectlog")
    await jsm.consumers.add("objectlog_logs", { ...config, ...changes })
  })
})

const event = (messageId: string, replyTo?: string) => [{ payload: "{}", messageId, replyTo }]

describe("a right that is refused", () => {
  it.live("to pull: noticed at once, said once, and over when it is given", () =>
    withBroker(permitting(allowAll), "worker:w", ({ logged, publish, taken }) =>
      Effect.gen(function* () {
        const server = yield* ConfiguredNats
        const broker = yield* Broker
        yield* publish("one")
        ;(yield* Queue.take(taken)).ack()
        yield* server.reload(permitting(deny("$JS.API.CONSUMER.MSG.NEXT.>")))
        // The request that is open still brings something; the one after it is refused.
        for (let i = 0; i < 1_600; i++) yield* publish(`more ${i}`)
        yield* untilRefused("pull")
        const text =
          'refused (pull): Permissions Violation for Publish to "$JS.API.CONSUMER.MSG.NEXT.objectlog_logs.objectlog"'
        assert.deepStrictEqual(yield* refusedNow, [text])
        yield* until(
          "it is tried again",
          Effect.sync(() => broker.connection().violations.pull >= 3),
        )
        assert.lengthOf(
          logged.filter((line) => line === `broker: ${text}`),
          1,
        )
        yield* server.reload(permitting(allowAll))
        yield* publish("last")
        let delivery = yield* Queue.take(taken)
        while (delivery.text !== "last") {
          delivery.ack()
          delivery = yield* Queue.take(taken)
        }
        delivery.ack()
        yield* untilNoneIsRefused
        // Taken away again, it is news again.
        yield* server.reload(permitting(deny("$JS.API.CONSUMER.MSG.NEXT.>")))
        for (let i = 0; i < 3_000; i++) yield* publish(`again ${i}`)
        yield* untilRefused("pull")
        assert.lengthOf(
          logged.filter((line) => line === `broker: ${text}`),
          2,
        )
      }),
    ),
  )

  it.live(
    "to publish, to park, to ask and to acknowledge: each fails at once, is named, and works when it is given",
    () =>
      withBroker(permitting(allowAll), "worker:w", ({ jsm, publish, taken }) =>
        Effect.gen(function* () {
          const server = yield* ConfiguredNats
          const broker = yield* Broker
          yield* publish("one")
          const one = yield* Queue.take(taken)
          yield* server.reload(
            permitting(
              deny("response", "dead.>", "logs_parked.>", "$JS.ACK.>", "$JS.API.STREAM.NAMES", "_INBOX.nobody.>"),
            ),
          )
          const letter = { code: "invalid_json", message: "no" } as const
          const operations = [
            broker.publish(event("1")),
            broker.deadLetter(one, letter),
            Effect.asVoid(broker.park("appends", "a", [one])),
            Effect.asVoid(broker.state),
          ]
          for (const operation of operations) {
            assert.include((yield* Effect.flip(operation)).message, "Permissions Violation for Publish to")
          }
          one.ack()
          yield* untilRefused("acknowledge")
          assert.deepStrictEqual(
            (yield* refusedNow).map((text) => /\((.*?)\)/.exec(text)![1]),
            ["event", "dead letter", "park", "request", "acknowledge"],
          )
          yield* server.reload(permitting(deny("_INBOX.nobody.>")))
          for (const operation of operations) yield* operation
          // Whom a request names is not the worker's affair: its event is stored, and the worker is well.
          yield* broker.publish(event("2", "_INBOX.nobody.1"))
          yield* untilRefused("copy")
          assert.include(
            yield* refusedNow,
            '(not disabling) refused (copy): Permissions Violation for Publish to "_INBOX.nobody.1"',
          )
          yield* publish("two")
          const two = yield* Queue.take(taken)
          two.ack()
          yield* until(
            "the second is acknowledged, and the first waits for its redelivery",
            Effect.promise(async () => (await jsm.consumers.info("objectlog_logs", "objectlog")).num_ack_pending === 1),
          )
        }),
      ),
  )

  it.live("to receive: subscriptions that the broker took away are made again when it is given", () =>
    withBroker(permitting(allowAll), "worker:w", ({ publish, taken }) =>
      Effect.gen(function* () {
        const server = yield* ConfiguredNats
        const broker = yield* Broker
        yield* publish("one")
        ;(yield* Queue.take(taken)).ack()
        yield* broker.publish(event("1"))
        yield* server.reload(permitting('publish: ">", subscribe: { deny: ["_INBOX.>"] }'))
        yield* untilRefused("receive")
        assert.include(
          (yield* Effect.flip(broker.publish(event("2")))).message,
          "Permissions Violation for Subscription",
        )
        yield* publish("two")
        yield* server.reload(permitting(allowAll))
        assert.strictEqual((yield* Queue.take(taken)).text, "two")
        yield* broker.publish(event("2"))
        yield* untilNoneIsRefused
      }),
    ),
  )

  it.live("at the start: it waits, says why, and starts when it is given", () =>
    Effect.gen(function* () {
      const server = yield* ConfiguredNats
      yield* server.start(permitting(deny("$JS.API.STREAM.CREATE.>")))
      const logged: Array<string> = []
      const starting = yield* Layer.build(Layer.provideMerge(live(server.url("worker:w")), logInto(logged))).pipe(
        Effect.forkScoped,
      )
      yield* until(
        "the reason is said",
        Effect.sync(() => logged.some((line) => line.includes('"$JS.API.STREAM.CREATE.objectlog_logs"'))),
      )
      yield* server.reload(permitting(allowAll))
      assert.isTrue(Exit.isSuccess(yield* Fiber.await(starting)))
    }).pipe(Effect.scoped, Effect.provide(ConfiguredNats.layer)),
  )
})

const limited = 'jetstream: { store_dir: "STORE", limits: { max_request_batch: 10, max_ack_pending: 50 } }'

describe("limits of the broker", () => {
  it.live("smaller requests and fewer deliveries under way than wanted: it works with those, and says so", () =>
    withBroker(limited, undefined, ({ jsm, logged, publish, taken }) =>
      Effect.gen(function* () {
        for (let i = 0; i < 100; i++) yield* publish(String(i))
        for (let i = 0; i < 100; i++) (yield* Queue.take(taken)).ack()
        const { config } = yield* Effect.promise(() => jsm.consumers.info("objectlog_logs", "objectlog"))
        assert.deepInclude(config, { max_ack_pending: 50, max_batch: 10 })
        assert.include(
          logged,
          "stream objectlog_logs: the broker allows the consumer objectlog only 50 unacknowledged deliveries of 100000: a slow shard may hold up the others; raise its limit max_ack_pending",
        )
      }),
    ),
  )

  it.live("of a consumer that somebody limits while it is pulled from: the next requests keep to them", () =>
    withBroker("", undefined, ({ jsm, publish, taken }) =>
      Effect.gen(function* () {
        const limits = { max_batch: 7, max_expires: 1_000_000_000, max_bytes: 2 * 1024 * 1024 }
        yield* replaceConsumer(jsm, limits)
        for (let i = 0; i < 50; i++) yield* publish(String(i))
        for (let i = 0; i < 50; i++) (yield* Queue.take(taken)).ack()
      }),
    ),
  )

  it.live("a consumer that can't bring the largest message is not pulled from, and named", () =>
    withBroker("", undefined, ({ jsm, logged }) =>
      Effect.gen(function* () {
        const broker = yield* Broker
        yield* replaceConsumer(jsm, { max_bytes: 1_000 })
        const text =
          "stream objectlog_logs: consumer objectlog: max_bytes of 1000 takes no message of 1048576 bytes, which max_payload allows; raise it, or the broker's limit max_request_max_bytes"
        const named = Effect.sync(() => broker.connection().troubles.some((trouble) => trouble.text === text))
        yield* until("it is named", named)
        assert.lengthOf(
          logged.filter((line) => line.startsWith(text)),
          1,
        )
        yield* Effect.promise(() => jsm.consumers.delete("objectlog_logs", "objectlog"))
        yield* until(
          "it is over",
          Effect.sync(() => broker.connection().troubles.length === 0),
        )
      }),
    ),
  )

  it.live("a consumer that can't be made: why, and not that there is none", () =>
    withBroker("", undefined, ({ jsm }) =>
      Effect.gen(function* () {
        const broker = yield* Broker
        yield* Effect.promise(async () => {
          const { config } = await jsm.streams.info("objectlog_logs_parked")
          await jsm.streams.delete(config.name)
          await jsm.streams.add({ ...config, max_consumers: 1 })
          await jsm.consumers.add(config.name, { durable_name: "mine", ack_policy: AckPolicy.None })
        })
        yield* Effect.forkScoped(Stream.runDrain(broker.parked("appends", "a")))
        yield* until(
          "the limit is named",
          Effect.sync(() =>
            broker
              .connection()
              .troubles.some(({ disabling, text }) => !disabling && text.includes("maximum consumers limit reached")),
          ),
        )
      }).pipe(Effect.scoped),
    ),
  )
})
