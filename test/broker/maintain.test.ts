/** What the upkeep of the streams may not touch, on a real nats-server. */
import { AckPolicy, jetstream, jetstreamManager, type StreamInfo } from "@nats-io/jetstream"
import { assert, describe, it, layer } from "@effect/vitest"
import { Context, Effect, Layer, Stream } from "effect"
import { Broker } from "../../src/broker/Broker.ts"
import { margin, marginMessages, noMargin, purgeDone } from "../../src/broker/maintain.ts"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { connectTo } from "../../bench/servers/connectTo.ts"
import { TestNats } from "../../bench/servers/privateServers.ts"
import { live, topics } from "./onServer.ts"

const streams = { logs: "objectlog_logs", parked: "objectlog_logs_parked" }
const lost = "logs_parked.appends.a"
const fine = "logs_parked.appends.b"

layer(TestNats.layer, { excludeTestServices: true, timeout: "30 seconds" })("upkeep", (it) => {
  it.effect(
    "a parked append that is delivered and not acknowledged outlives purges, of its subject's neighbours too",
    () =>
      Effect.gen(function* () {
        const { url } = yield* NatsServer
        const connection = yield* Effect.acquireRelease(
          Effect.promise(() => connectTo(url)),
          (open) => Effect.promise(() => open.close()),
        )
        const jsm = yield* Effect.promise(() => jetstreamManager(connection))
        const js = jetstream(connection)
        const addConsumer = (stream: string, name: string, filter: string) =>
          jsm.consumers.add(stream, {
            durable_name: name,
            filter_subject: filter,
            ack_policy: AckPolicy.Explicit,
            max_ack_pending: 10_000,
          })
        yield* Effect.promise(async () => {
          await jsm.streams.add({ name: streams.parked, subjects: ["logs_parked.>"] })
          await addConsumer(streams.parked, "appends_a", lost)
          await addConsumer(streams.parked, "appends_b", fine)
        })
        /** Takes what a consumer has and acknowledges it, but for the message of this number. */
        const work = async (consumer: string, count: number, except = 0) => {
          const messages = await (await js.consumers.get(streams.parked, consumer)).fetch({ max_messages: count })
          for await (const message of messages) if (message.seq !== except) await message.ackAck()
        }
        const kept = 2_501
        yield* Effect.promise(async () => {
          for (let i = 0; i < 4_000; i += 1_000) {
            await Promise.all(Array.from({ length: 1_000 }, (_, j) => js.publish(j % 2 === 0 ? lost : fine, "x")))
          }
          await work("appends_a", 2_000, kept)
          await work("appends_b", 2_000)
        })
        const upkeep = purgeDone(jsm, topics, "parked", streams.parked, margin("parked", -1), 0)
        yield* upkeep
        yield* upkeep
        const after = yield* Effect.promise(async () => ({
          pending: (await jsm.consumers.info(streams.parked, "appends_a")).num_ack_pending,
          state: (await jsm.streams.info(streams.parked)).state,
        }))
        assert.strictEqual(after.pending, 1, "the open one is still known to its consumer")
        assert.strictEqual(after.state.first_seq, kept - 1 - 1_000, "what all have done is purged, but for the margin")

        // A subject whose consumer was lost: nothing is known of what it has not done.
        yield* Effect.promise(async () => {
          await jsm.consumers.delete(streams.parked, "appends_a")
          await Promise.all(Array.from({ length: 2_000 }, () => js.publish(fine, "x")))
          await work("appends_b", 2_000)
        })
        yield* upkeep
        const { state } = yield* Effect.promise(() => jsm.streams.info(streams.parked))
        assert.strictEqual(state.first_seq, after.state.first_seq)
      }),
  )

  it.effect("finished requests are kept up to so many bytes, which upkeep sees to as they come", () =>
    Effect.gen(function* () {
      const { url } = yield* NatsServer
      const connection = yield* Effect.acquireRelease(
        Effect.promise(() => connectTo(url)),
        (open) => Effect.promise(() => open.close()),
      )
      const jsm = yield* Effect.promise(() => jetstreamManager(connection))
      const broker = yield* Effect.map(Layer.build(live(url)), (context) => Context.get(context, Broker))
      yield* broker.appends.pipe(
        Stream.runForEach((delivery) => Effect.sync(() => delivery.ack())),
        Effect.forkScoped,
      )
      const held: Array<number> = []
      yield* Effect.promise(async () => {
        const js = jetstream(connection)
        for (let i = 0; i < 250; i++) {
          await js.publish("logs", new Uint8Array(900_000))
          held.push((await jsm.streams.info(streams.logs)).state.bytes / 1024 ** 2)
        }
      })
      // The margin, what comes until upkeep is due, and what is under way.
      assert.isBelow(Math.max(...held), 64 + 16 + 40)
      assert.isAbove(held.at(-1)!, 32, "a margin is kept")
    }).pipe(Effect.scoped),
  )
})

describe("the margin", () => {
  const stream = (messages: number, bytes: number) => ({ state: { messages, bytes } }) as StreamInfo

  it("is so many messages, or fewer where they are large", () => {
    const { bytes, messages } = margin("logs", -1)
    assert.deepStrictEqual([messages, bytes], [10_000, 64 * 1024 ** 2])
    const kept = { messages, bytes }
    assert.strictEqual(marginMessages(kept, stream(50_000, 50_000 * 100), 0), 10_000)
    assert.strictEqual(marginMessages(kept, stream(100, 100 * 1024 ** 2), 0), 64)
    // A backlog of small ones does not hide that what was finished is large, nor the other way round.
    assert.strictEqual(marginMessages(kept, stream(1_000_000, 100_000_000), 1024 ** 2), 64)
    assert.strictEqual(marginMessages(kept, stream(100, 100 * 1024 ** 2), 100), 64)
    assert.strictEqual(marginMessages(kept, stream(0, 0), 0), 10_000)
    assert.strictEqual(marginMessages(noMargin, stream(10, 10), 0), 0)
  })

  it("is a small share of what the account may store", () => {
    assert.strictEqual(margin("logs", 160 * 1024 ** 2).bytes, 10 * 1024 ** 2)
    assert.strictEqual(margin("query", 1024 ** 4).bytes, 64 * 1024 ** 2)
  })
})
