/** Confirmations are counted, so each has to be counted once. */
import { assert, layer, vi } from "@effect/vitest"
import { createInbox, type NatsConnection } from "@nats-io/transport-node"
import { Effect, Fiber } from "effect"
import { ConnectionState } from "../../src/nats/connection.ts"
import { blockText } from "../../src/nats/headers.ts"
import { Incoming } from "../../src/nats/Incoming.ts"
import { Outgoing } from "../../src/nats/Outgoing.ts"
import { makePublisher, publishMade } from "../../src/nats/publish.ts"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { TestNats } from "../../bench/servers/privateServers.ts"
import { connectTo } from "../../bench/servers/connectTo.ts"

const connected = Effect.flatMap(NatsServer, ({ url }) =>
  Effect.acquireRelease(
    Effect.promise(() => connectTo(url)),
    (connection) => Effect.promise(() => connection.close()),
  ),
)

const publisherOn = (connection: NatsConnection) =>
  makePublisher(
    connection,
    new Outgoing(connection),
    new Incoming(connection),
    new ConnectionState(),
    (failed) => failed,
  )

layer(TestNats.layer, { excludeTestServices: true })("publishing", (it) => {
  it.effect("a confirmation that comes twice, or from another stream, does not stand for one that is missing", () =>
    Effect.gen(function* () {
      const [own, stream] = yield* Effect.all([connected, connected])
      const subject = createInbox()
      const received: Array<string> = []
      // Answers as a stream does, whose first leader confirms the first message and loses the third.
      stream.subscribe(subject, {
        callback: (_, message) => {
          const text = message.string()
          const isAgain = received.includes(text)
          received.push(text)
          const answer = (name: string) => message.respond(`{"stream":"${name}", "seq":${text}}`)
          if (isAgain) {
            message.respond(`{"stream":"one", "seq":${text},"duplicate": true}`)
          } else if (text !== "3") {
            answer("one")
            answer("one")
            answer("other")
          }
        },
      })
      yield* Effect.promise(() => stream.flush())
      const publish = yield* publisherOn(own)
      const messages = ["1", "2", "3"].map((payload) => ({
        subject,
        payload,
        headers: blockText([]),
        copy: undefined,
      }))
      vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] })
      yield* Effect.addFinalizer(() => Effect.sync(() => vi.useRealTimers()))
      const publishing = yield* Effect.forkChild(publishMade(publish, messages))
      // What was answered is there before the answer to a flush, on both connections.
      for (const each of [own!, stream!, own!]) yield* Effect.promise(() => each.flush())
      assert.deepStrictEqual(received, ["1", "2", "3"])
      // The confirmation of the third is waited for in vain, and after a pause the slice is sent again.
      yield* Effect.promise(() => vi.advanceTimersByTimeAsync(6_000))
      yield* Fiber.join(publishing)
      assert.deepStrictEqual(received, ["1", "2", "3", "1", "2", "3"])
    }).pipe(Effect.scoped),
  )

  it.effect("what is long goes in slices, of which two fit in the window", () =>
    Effect.gen(function* () {
      const [own, stream] = yield* Effect.all([connected, connected])
      const subject = createInbox()
      const slices = new Map<string, number>()
      let seq = 0
      stream.subscribe(subject, {
        callback: (_, message) => {
          slices.set(message.reply!, (slices.get(message.reply!) ?? 0) + message.data.length)
          message.respond(`{"stream":"one", "seq":${++seq}}`)
        },
      })
      yield* Effect.promise(() => stream.flush())
      const publish = yield* publisherOn(own)
      const payload = "x".repeat(900_000)
      const messages = Array.from({ length: 12 }, () => ({ subject, payload, headers: blockText([]), copy: undefined }))
      yield* publishMade(publish, messages)
      assert.strictEqual(seq, 12)
      assert.isAtLeast(slices.size, 3)
      for (const bytes of slices.values()) assert.isAtMost(bytes, 4 * 1024 ** 2)
    }).pipe(Effect.scoped),
  )
})
