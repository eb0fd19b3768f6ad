/** A store that others have filled, in which nothing of ours can give way. */
import { jetstream, jetstreamManager } from "@nats-io/jetstream"
import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Layer, Stream } from "effect"
import { Broker } from "../../src/broker/Broker.ts"
import { isStoreFull } from "../../src/nats/jetStreamErrors.ts"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { connectTo } from "../../bench/servers/connectTo.ts"
import { TestNats } from "../../bench/servers/privateServers.ts"
import { live } from "./onServer.ts"

const event = (messageId: string) => [{ payload: `{"event":"${messageId}"}`, messageId, replyTo: undefined }]

describe("a store without any room", () => {
  it.live(
    "sends events to who listens, hands back what was to be parked, and refuses dead letters, until it has some",
    () =>
      Effect.gen(function* () {
        const { url } = yield* NatsServer
        const connection = yield* Effect.acquireRelease(
          Effect.promise(() => connectTo(url)),
          (open) => Effect.promise(() => open.close()),
        )
        const jsm = yield* Effect.promise(() => jetstreamManager(connection))
        const js = jetstream(connection)
        // It stands in the way of the reserve.
        yield* Effect.promise(() => jsm.streams.add({ name: "others", subjects: ["others", "logs_reserve.>"] }))
        const broker = yield* Effect.map(Layer.build(live(url)), (context) => Context.get(context, Broker))
        yield* Effect.promise(() => js.publish("logs", "one"))
        const [one] = yield* broker.appends.pipe(Stream.take(1), Stream.runCollect)
        const heard: Array<string> = []
        connection.subscribe("response", { callback: (_, message) => void heard.push(message.string()) })
        yield* Effect.promise(async () => {
          await connection.flush()
          const store = (bytes: number) =>
            js.publish("others", new Uint8Array(bytes)).then(
              () => true,
              () => false,
            )
          while (await store(500_000));
        })

        yield* broker.publish(event("a"))
        assert.include(heard, `{"event":"a"}`)
        const { isSilent, isStoring, troubles } = broker.connection()
        assert.deepStrictEqual([isSilent, isStoring], [false, false])
        assert.deepInclude(troubles, { text: "its store is full: insufficient resources", disabling: true })
        const letter = broker.deadLetter(one!, { code: "invalid_json", message: "no" })
        assert.isTrue(isStoreFull(yield* Effect.flip(letter)))
        assert.deepStrictEqual(yield* broker.park("appends", "a", [one!]), [one!])

        yield* Effect.promise(() => jsm.streams.purge("others"))
        yield* letter
        assert.deepStrictEqual(yield* broker.park("appends", "a", [one!]), [])
        yield* broker.publish(event("b"))
        const stored = yield* Effect.promise(() => jsm.streams.getMessage("objectlog_response", { seq: 1 }))
        assert.strictEqual(stored?.string(), `{"event":"b"}`, "the first one was not kept")
        // Without a reserve nothing but time tells that there is room.
        assert.isFalse(broker.connection().isStoring)
      }).pipe(Effect.scoped, Effect.provide(TestNats.small(40 * 1024 ** 2))),
  )

  it.live("old events give way to new ones", () =>
    Effect.gen(function* () {
      const { url } = yield* NatsServer
      const connection = yield* Effect.acquireRelease(
        Effect.promise(() => connectTo(url)),
        (open) => Effect.promise(() => open.close()),
      )
      const jsm = yield* Effect.promise(() => jetstreamManager(connection))
      yield* Effect.promise(() => jsm.streams.add({ name: "others", subjects: ["others", "logs_reserve.>"] }))
      const broker = yield* Effect.map(Layer.build(live(url)), (context) => Context.get(context, Broker))
      const large = "x".repeat(900_000)
      for (let i = 0; i < 12; i++) yield* broker.publish([{ payload: large, messageId: `${i}`, replyTo: undefined }])
      yield* Effect.promise(async () => {
        const js = jetstream(connection)
        const store = () =>
          js.publish("others", new Uint8Array(500_000)).then(
            () => true,
            () => false,
          )
        while (await store());
      })
      yield* broker.publish(event("new"))
      const state = Effect.promise(async () => (await jsm.streams.info("objectlog_response")).state)
      const { last_seq, messages } = yield* state
      assert.strictEqual(last_seq, 13)
      assert.isBelow(messages, 13)
      assert.isAbove(messages, 1, "no more than is needed")
    }).pipe(Effect.scoped, Effect.provide(TestNats.small(40 * 1024 ** 2))),
  )
})
