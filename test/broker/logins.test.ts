/** A broker that refuses the login for a while: whatever ends must end by itself, or with the process. */
import { connect } from "@nats-io/transport-node"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Queue, Redacted } from "effect"
import { Broker } from "../../src/broker/Broker.ts"
import { connectionEnd, watchConnection } from "../../src/nats/connection.ts"
import { connectionOptions } from "../../src/nats/connectionOptions.ts"
import { connected } from "../../src/load/connected.ts"
import { ConfiguredNats } from "../embedded/ConfiguredNats.ts"
import { until, withBroker } from "./onServer.ts"

const users = (...passwords: ReadonlyArray<readonly [user: string, password: string]>) =>
  `authorization: { users: [ ${passwords.map(([user, password]) => `{ user: ${user}, password: "${password}" }`).join(", ")} ] }`

const right = users(["worker", "right"], ["all", "a"])
const wrong = users(["worker", "wrong"], ["all", "a"])
const missing = users(["all", "a"])

/** A broker service that works, an outage, and a broker service that works. */
const survives = (outage: (refused: Effect.Effect<void>) => Effect.Effect<void, never, ConfiguredNats>) =>
  withBroker(right, "worker:right", ({ logged, publish, taken }) =>
    Effect.gen(function* () {
      const broker = yield* Broker
      const work = Effect.fnUntraced(function* (text: string) {
        yield* publish(text)
        const delivery = yield* Queue.take(taken)
        assert.strictEqual(delivery.text, text)
        yield* broker.publish([{ payload: text, messageId: text, replyTo: undefined }]).pipe(Effect.retry({ times: 3 }))
        delivery.ack()
      })
      yield* work("before")
      // Two refusals were enough for the library to close the connection.
      const refused = Effect.gen(function* () {
        yield* until(
          "the connection is lost",
          Effect.sync(() => !broker.connection().connected),
        )
        const { attempts } = broker.connection()
        yield* until(
          "it was refused some times",
          Effect.sync(() => broker.connection().attempts >= attempts + 4),
        )
      })
      yield* outage(refused)
      yield* until(
        "the connection is there again",
        Effect.sync(() => broker.connection().connected),
      )
      yield* work("after")
      const lines = logged.filter((line) => line.includes("refuses the login"))
      assert.deepStrictEqual(lines, ["the broker refuses the login: Authorization Violation"])
    }),
  )

describe("a login that is refused for a while", () => {
  it.live("a restart with another password: the service goes on when it is the right one again", () =>
    survives((refused) =>
      Effect.gen(function* () {
        const server = yield* ConfiguredNats
        yield* server.start(wrong)
        yield* refused
        yield* server.start(right)
      }),
    ),
  )

  it.live("a password that is changed in the running server", () =>
    survives((refused) =>
      Effect.gen(function* () {
        const server = yield* ConfiguredNats
        yield* server.reload(wrong)
        yield* refused
        yield* server.reload(right)
      }),
    ),
  )

  it.live("a user that is missing from the running server", () =>
    survives((refused) =>
      Effect.gen(function* () {
        const server = yield* ConfiguredNats
        yield* server.reload(missing)
        yield* refused
        yield* server.reload(right)
      }),
    ),
  )

  it.live("the load generator's connection goes on too, and says what there is to say once", () =>
    Effect.gen(function* () {
      const server = yield* ConfiguredNats
      yield* server.start(right)
      const notices: Array<string> = []
      let reconnects = 0
      const { connection, isUp } = yield* connected(
        Redacted.make(server.url("worker:right")),
        () => void reconnects++,
        (text) => Effect.sync(() => void notices.push(text)),
      )
      yield* server.reload(missing)
      // Refused a second time, the library would have closed it.
      yield* until(
        "it is refused some times",
        Effect.sync(() => server.said("authentication error") >= 3),
      )
      assert.isFalse(isUp())
      yield* server.reload(right)
      yield* until("it is up", Effect.sync(isUp))
      assert.isFalse(connection.isClosed())
      assert.strictEqual(reconnects, 1)
      assert.deepStrictEqual(notices, [
        "the connection to the broker is lost; it is made again",
        "the broker refuses the login: Authorization Violation",
        "connected to the broker again",
      ])
    }).pipe(Effect.scoped, Effect.provide(ConfiguredNats.layer)),
  )

  it.live("a connection that the library closes for good has an end, with the reason", () =>
    Effect.gen(function* () {
      const server = yield* ConfiguredNats
      yield* server.start(right)
      const connection = yield* Effect.acquireRelease(
        Effect.promise(() =>
          connect({ ...connectionOptions(server.url("worker:right"), "test"), ignoreAuthErrorAbort: false }),
        ),
        (made) => Effect.promise(() => made.close()),
      )
      const state = yield* watchConnection(connection, () => Effect.void)
      yield* server.reload(wrong)
      const end = yield* Effect.flip(connectionEnd(connection, state))
      assert.strictEqual(
        end.message,
        "the connection to the broker has ended for good (Authorization Violation): a new start makes a new one",
      )
    }).pipe(Effect.scoped, Effect.provide(ConfiguredNats.layer)),
  )
})
