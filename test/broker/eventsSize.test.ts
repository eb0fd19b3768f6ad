/** How much room is reserved for events, on servers that have more or less of it. */
import { jetstream, jetstreamManager } from "@nats-io/jetstream"
import { connect } from "@nats-io/transport-node"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Layer } from "effect"
import { provision } from "../../src/broker/provision.ts"
import { ConfiguredNats } from "../embedded/ConfiguredNats.ts"
import { live, logInto, topics, until } from "./onServer.ts"

const mebibyte = 1024 ** 2
const storing = (megabytes: number) => `jetstream: { store_dir: "STORE", max_file_store: ${megabytes * mebibyte} }`

/** A manager on a server that may store so much. */
const managerOn = Effect.fnUntraced(function* (megabytes: number) {
  const server = yield* ConfiguredNats
  yield* server.start(storing(megabytes))
  const connection = yield* Effect.acquireRelease(
    Effect.promise(() => connect({ servers: server.url() })),
    (made) => Effect.promise(() => made.close()),
  )
  return { connection, jsm: yield* Effect.promise(() => jetstreamManager(connection)) }
})

describe("the room for events", () => {
  for (const [has, taken] of [
    [2_000, 1_024],
    [1_000, 256],
    [300, 128],
    [70, 32],
    [33, 32],
  ] as const) {
    it.live(`is ${taken} MiB on a server that may store ${has} MiB`, () =>
      Effect.gen(function* () {
        const { jsm } = yield* managerOn(has)
        const { response } = yield* provision(jsm, topics)
        const { config } = yield* Effect.promise(() => jsm.streams.info(response.name))
        assert.strictEqual(config.max_bytes, taken * mebibyte)
      }).pipe(Effect.scoped, Effect.provide(ConfiguredNats.layer)),
    )
  }

  it.live("is asked for in bytes where there is too little, and taken as soon as there is enough", () => {
    const logged: Array<string> = []
    return Effect.gen(function* () {
      const server = yield* ConfiguredNats
      yield* server.start(storing(20))
      const built = yield* Effect.forkChild(Layer.build(live(server.url())))
      yield* until(
        "it is said what is missing",
        Effect.sync(() =>
          logged.some((line) =>
            /objectlog_response: the server has no room to set 33554432 bytes aside .*raise max_file_store/.test(line),
          ),
        ),
      )
      yield* server.start(storing(300))
      yield* Fiber.join(built)
    }).pipe(Effect.scoped, Effect.provide(Layer.merge(ConfiguredNats.layer, logInto(logged))))
  })

  it.live("becomes less where the server has less after a restart, and what it held is there", () =>
    Effect.gen(function* () {
      const before = yield* managerOn(2_000)
      const { response } = yield* provision(before.jsm, topics)
      yield* Effect.promise(() => jetstream(before.connection).publish("response", "kept"))
      const { jsm } = yield* managerOn(300)
      yield* provision(jsm, topics)
      const { config, state } = yield* Effect.promise(() => jsm.streams.info(response.name))
      assert.strictEqual(state.messages, 1)
      assert.isAtMost(config.max_bytes, 1_024 * mebibyte)
    }).pipe(Effect.scoped, Effect.provide(ConfiguredNats.layer)),
  )
})
