/** One stream or consumer that can't be had concerns only what uses it; and there may be more of them than a page lists. */
import { AckPolicy, DeliverPolicy, jetstream, type JetStreamManager, RetentionPolicy } from "@nats-io/jetstream"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Queue, Stream } from "effect"
import { Broker, type Delivery } from "../../src/broker/Broker.ts"
import { margin, purgeDone } from "../../src/broker/maintain.ts"
import { replay } from "../../src/broker/replay.ts"
import { readFloor } from "../../src/load/BrokerView.ts"
import { ConfiguredNats } from "../embedded/ConfiguredNats.ts"
import { topics, until, withBroker } from "./onServer.ts"

const parkedStream = "objectlog_logs_parked"

const troubles = Broker.useSync((broker) => broker.connection().troubles.map(({ text }) => text))

const ackPending = (jsm: JetStreamManager, stream: string, consumer: string) =>
  Effect.promise(async () => (await jsm.consumers.info(stream, consumer)).num_ack_pending)

const restart = Effect.gen(function* () {
  const server = yield* ConfiguredNats
  yield* server.start("")
})

describe("a part that can't be recovered", () => {
  it.live("a misconfigured stream of reads, and a reconnect: appends go on", () =>
    withBroker("", undefined, ({ jsm, publish, taken }) =>
      Effect.gen(function* () {
        const broker = yield* Broker
        yield* publish("before")
        const before = yield* Queue.take(taken)
        yield* Effect.promise(async () => {
          await jsm.streams.delete("objectlog_query")
          await jsm.streams.add({ name: "mine", subjects: ["query"], retention: RetentionPolicy.Workqueue })
        })
        yield* restart
        yield* Effect.forkScoped(Stream.runDrain(broker.queries))
        before.ack()
        yield* publish("after")
        let delivery = yield* Queue.take(taken)
        while (delivery.text !== "after") delivery = yield* Queue.take(taken)
        delivery.ack()
        yield* until(
          "all is acknowledged",
          Effect.map(ackPending(jsm, "objectlog_logs", "objectlog"), (count) => count === 0),
        )
        yield* until(
          "it is named",
          Effect.map(troubles, (all) => all.includes("stream mine: expected retention by limits, got workqueue")),
        )
        // Put right, it is over.
        yield* Effect.promise(() => jsm.streams.delete("mine"))
        yield* until(
          "nothing is wrong",
          Effect.map(troubles, (all) => all.length === 0),
        )
      }).pipe(Effect.scoped),
    ),
  )

  it.live("a parked consumer that somebody spoilt: those of the other shards are acknowledged", () =>
    withBroker("", undefined, ({ jsm, publish, taken }) =>
      Effect.gen(function* () {
        const broker = yield* Broker
        for (const text of ["a", "b", "b"]) yield* publish(text)
        const [a, b, again] = [yield* Queue.take(taken), yield* Queue.take(taken), yield* Queue.take(taken)]
        yield* broker.park("appends", "a", [a])
        const fromB = yield* Queue.unbounded<Delivery>()
        yield* Effect.forkScoped(Stream.runDrain(broker.parked("appends", "a")))
        yield* Effect.forkScoped(
          Stream.runForEach(broker.parked("appends", "b"), (delivery) => Queue.offer(fromB, delivery)),
        )
        yield* broker.park("appends", "b", [b])
        const first = yield* Queue.take(fromB)
        yield* Effect.promise(async () => {
          await jsm.consumers.delete(parkedStream, "appends_a")
          await jsm.consumers.add(parkedStream, {
            durable_name: "appends_a",
            ack_policy: AckPolicy.None,
            deliver_policy: DeliverPolicy.New,
          })
        })
        yield* until(
          "it is named, as a part",
          Effect.sync(() =>
            broker
              .connection()
              .troubles.some(
                ({ disabling, text }) => !disabling && text.includes("consumer appends_a: expected explicit"),
              ),
          ),
        )
        first.ack()
        yield* broker.park("appends", "b", [again])
        ;(yield* Queue.take(fromB)).ack()
        yield* until(
          "both are acknowledged",
          Effect.map(ackPending(jsm, parkedStream, "appends_b"), (count) => count === 0),
        )
      }).pipe(Effect.scoped),
    ),
  )

  it.live("a spoilt stream of dead letters: a missing one of events is made again", () =>
    withBroker("", undefined, ({ jsm }) =>
      Effect.gen(function* () {
        const broker = yield* Broker
        yield* Effect.promise(async () => {
          await jsm.streams.delete("objectlog_dead")
          await jsm.streams.delete("objectlog_response")
          await jsm.streams.add({ name: "part", subjects: ["dead.logs"] })
        })
        yield* Effect.retry(broker.publish([{ payload: "{}", messageId: "1", replyTo: undefined }]), { times: 10 })
        const { state } = yield* Effect.promise(() => jsm.streams.info("objectlog_response"))
        assert.strictEqual(state.messages, 1)
      }),
    ),
  )
})

describe("more consumers than a page lists", () => {
  it.live("are seen by the upkeep, by a replay and by the load generator, each of them", () =>
    withBroker("", undefined, ({ connection, jsm, taken }) =>
      Effect.gen(function* () {
        const js = jetstream(connection)
        const shards = Array.from({ length: 300 }, (_, i) => `s${String(i).padStart(3, "0")}`)
        const last = shards.at(-1)!
        yield* Effect.promise(async () => {
          for (const shard of shards) {
            await jsm.consumers.add(parkedStream, {
              durable_name: `appends_${shard}`,
              filter_subject: `logs_parked.appends.${shard}`,
              ack_policy: AckPolicy.Explicit,
            })
          }
          for (let i = 0; i < 1_500; i++) await js.publish(`logs_parked.appends.${i < 1_490 ? shards[0] : last}`, "x")
        })
        const work = async (shard: string, count: number) => {
          const messages = await (
            await js.consumers.get(parkedStream, `appends_${shard}`)
          ).fetch({ max_messages: count })
          for await (const message of messages) await message.ackAck()
        }
        yield* Effect.promise(() => work(shards[0]!, 1_490))
        const firstSeq = Effect.promise(async () => (await jsm.streams.info(parkedStream)).state.first_seq)
        yield* purgeDone(jsm, topics, "parked", parkedStream, margin("parked", -1), 0)
        // Up to the first that the last shard has not done, but for the margin.
        assert.strictEqual(yield* firstSeq, 1_490 - 1_000)
        assert.isUndefined(yield* readFloor(connection, "logs"))
        yield* Effect.promise(() => work(last, 10))
        assert.isDefined(yield* readFloor(connection, "logs"))
        yield* replay(jsm, "logs")
        const { num_pending } = yield* Effect.promise(() => jsm.consumers.info(parkedStream, `appends_${last}`))
        assert.strictEqual(num_pending, 10)
        assert.strictEqual(yield* Queue.size(taken), 0)
      }),
    ),
  )
})
