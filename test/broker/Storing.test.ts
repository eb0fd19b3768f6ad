/** What a worker knows of how the broker stores, in time that the test moves. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Logger } from "effect"
import { BrokerUnavailable } from "../../src/broker/Broker.ts"
import { StoreFull } from "../../src/nats/jetStreamErrors.ts"
import { Storing } from "../../src/broker/Storing.ts"

const lost = new BrokerUnavailable({ operation: "publish", cause: new Error("not confirmed in time") })

const withStoring = (
  test: (world: {
    readonly storing: Storing
    readonly pass: (seconds: number) => void
    readonly connect: (isConnected: boolean) => void
    readonly logged: ReadonlyArray<string>
  }) => Effect.Effect<void, BrokerUnavailable>,
) =>
  Effect.suspend(() => {
    let now = 1_000_000
    let isConnected = true
    const logged: Array<string> = []
    return test({
      storing: new Storing(
        () => isConnected,
        () => now,
      ),
      pass: (seconds) => void (now += seconds * 1_000),
      connect: (connected) => void (isConnected = connected),
      logged,
    }).pipe(Effect.provide(Logger.layer([Logger.make(({ message }) => void logged.push(String(message)))])))
  })

const silence = (error: BrokerUnavailable) => !(error.cause instanceof StoreFull)

describe("Storing", () => {
  it.effect("a store is full until nothing has waited for room for some time and the reserve is whole again", () =>
    withStoring(({ logged, pass, storing }) =>
      Effect.gen(function* () {
        yield* storing.refused("insufficient resources", true)
        yield* storing.refused("insufficient resources", true)
        storing.notKept(7)
        assert.deepStrictEqual(storing.state(), {
          isStoring: false,
          troubles: ["its store is full: insufficient resources"],
          isSilent: false,
        })
        yield* storing.hasRoom("withReserve")
        assert.isFalse(storing.state().isStoring, "it would be said again and again")
        pass(10)
        yield* storing.hasRoom("without")
        assert.isFalse(storing.state().isStoring)
        yield* storing.hasRoom("withReserve")
        assert.deepStrictEqual(storing.state(), { isStoring: true, troubles: [], isSilent: false })
        assert.strictEqual(logged.length, 2)
        assert.match(logged[1]!, /^broker: its store has room again, after 10 s; 7 events were sent and not kept$/)
      }),
    ),
  )

  it.effect("silence is told after some seconds, and over with the first answer", () =>
    withStoring(({ pass, storing }) =>
      Effect.gen(function* () {
        const began = storing.heard(
          "events",
          Effect.suspend(() => {
            pass(5)
            return Effect.fail(lost)
          }),
          silence,
        )
        yield* Effect.ignore(began)
        assert.isTrue(storing.state().isStoring, "one that is lost is no silence")
        pass(10)
        const { isSilent, isStoring, troubles } = storing.state()
        assert.deepStrictEqual([isStoring, isSilent], [false, true])
        assert.match(troubles[0]!, /^no answer to events for 15 s although it is connected; .* has to be restarted$/)
        yield* storing.heard("dead letters", Effect.void, silence)
        assert.isFalse(storing.state().isStoring, "each stream is heard of by itself")
        yield* storing.heard("events", Effect.void, silence)
        assert.isTrue(storing.state().isStoring)
      }),
    ),
  )

  it.effect("what is lost with a connection, or refused, is no silence", () =>
    withStoring(({ connect, pass, storing }) =>
      Effect.gen(function* () {
        const fails = (error: BrokerUnavailable) => Effect.ignore(storing.heard("events", Effect.fail(error), silence))
        connect(false)
        yield* fails(lost)
        connect(true)
        pass(60)
        assert.isTrue(storing.state().isStoring)
        yield* fails(new BrokerUnavailable({ operation: "publish", cause: new StoreFull("no room") }))
        pass(60)
        assert.isTrue(storing.state().isStoring)
        yield* fails(lost)
        pass(60)
        assert.isFalse(storing.state().isStoring)
        // Whatever was asked for before says nothing of the server that is there now.
        yield* Effect.ignore(
          storing.heard(
            "events",
            Effect.suspend(() => {
              pass(60)
              storing.reconnected()
              return Effect.fail(lost)
            }),
            silence,
          ),
        )
        assert.isTrue(storing.state().isStoring)
      }),
    ),
  )

  it.effect("what a stream has become is said once, and told until it is put right", () =>
    withStoring(({ logged, storing }) =>
      Effect.gen(function* () {
        yield* storing.changed("s", "max_msgs 1 drops what is not done yet")
        yield* storing.changed("s", "max_msgs 1 drops what is not done yet")
        assert.deepStrictEqual(storing.state().troubles, ["stream s: max_msgs 1 drops what is not done yet"])
        assert.isTrue(storing.state().isStoring)
        yield* storing.changed("s", undefined)
        yield* storing.changed("s", undefined)
        assert.deepStrictEqual(storing.state().troubles, [])
        assert.strictEqual(logged.length, 2)
      }),
    ),
  )
})
