/**
 * The receiving half of the wire under faults: the program's own parser, inbox, pull protocol, deliveries and stream lives, on a
 * simulated server and clock. Whatever breaks, each message of the stream that is there at the end is seen and acknowledged,
 * and none is acknowledged that nobody saw.
 *
 * What stays out: the client library's own reconnect, provisioning, and the publishing half, which real servers test.
 */
import { afterEach, assert, beforeEach, describe, it, vi } from "@effect/vitest"
import { Effect, Exit, Scope } from "effect"
import type { Delivery } from "../../src/broker/Broker.ts"
import { Intake } from "../../src/broker/Intake.ts"
import { StreamLives } from "../../src/broker/StreamLife.ts"
import { Volume } from "../../src/broker/Volume.ts"
import { Incoming } from "../../src/nats/Incoming.ts"
import { Outgoing } from "../../src/nats/Outgoing.ts"
import { Prng } from "./Prng.ts"
import { SimulatedServer } from "./SimulatedServer.ts"

beforeEach(() => {
  vi.useFakeTimers({
    toFake: ["setTimeout", "clearTimeout", "setInterval", "clearInterval", "setImmediate", "clearImmediate", "Date"],
  })
})
afterEach(() => void vi.useRealTimers())

const stepMillis = 100
const pull = 40

const simulate = async (seed: number) => {
  const prng = new Prng(seed)
  const chance = (oneIn: number) => prng.below(oneIn) === 0
  const server = new SimulatedServer(prng)
  const incoming = new Incoming(server.connection)
  const outgoing = new Outgoing(server.connection)
  const found = () => ({ name: "S", created: `life ${server.life}` })
  const streams = new StreamLives(found(), () => server.isConnected, outgoing)
  const counts = { buffered: 0, taken: 0 }
  /** Asks the server, again and again until it answers. */
  const asked = <A>(answer: () => A, firstMillis: number): Effect.Effect<A> =>
    Effect.suspend(() => (server.isReachable ? Effect.sync(answer) : asked(answer, 500))).pipe(
      Effect.delay(firstMillis),
    )
  const intake = new Intake({
    counts,
    volume: new Volume(),
    connection: server.connection,
    incoming,
    stream: streams,
    consumer: "C",
    isParked: false,
    pull,
    bytes: 100_000,
    recover: (reason) =>
      // As Recovery does it: after a pause, once it is known which stream is there.
      Effect.andThen(
        reason === undefined
          ? streams.sure
          : Effect.andThen(
              Effect.delay(
                Effect.sync(() => streams.doubt()),
                1_000,
              ),
              Effect.suspend(() => streams.sure),
            ),
        asked(() => {
          server.provision()
          return { messages: Infinity, bytes: Infinity, millis: Infinity }
        }, 10),
      ),
  })
  streams.onChange.add(() => intake.streamChanged())

  /** Takes what comes, and settles each after a while. */
  const settle = (delivery: Delivery, life: number) => {
    server.handled.add(`${life}:${delivery.seq}`)
    const keepAlive = setInterval(() => delivery.working(), 10_000)
    setTimeout(
      () => {
        clearInterval(keepAlive)
        if (chance(8)) delivery.retry(prng.below(3_000))
        else delivery.ack()
      },
      chance(20) ? prng.below(50_000) : prng.below(2_000),
    )
  }
  let mostHeld = 0
  let isBreaking = true
  const take = Effect.gen(function* () {
    for (const delivery of yield* intake.take) {
      // The text says of which life it is.
      settle(delivery, Number(delivery.text!.split(":")[0]))
    }
    // Sometimes nobody takes for a while.
    if (isBreaking && chance(10)) yield* Effect.sleep(prng.below(30_000))
  })
  const scope = Effect.runSync(Scope.make())
  for (const loop of [intake.keep, streams.keep(asked(found, 50)), Effect.forever(take)]) {
    Effect.runFork(Effect.forkIn(loop, scope))
  }

  const faults: ReadonlyArray<() => void> = [
    () => {
      server.disconnect()
      setTimeout(
        () => {
          server.reconnect()
          // In this order, as in NatsLive: before anything is pulled or settled.
          streams.doubt()
          intake.reconnected()
        },
        100 + prng.below(8_000),
      )
    },
    () => void (server.silentUntil = Date.now() + prng.below(45_000)),
    () => server.deleteConsumer(),
    () => server.makeAgain(),
  ]
  const run = async (seconds: number, withFaults: boolean) => {
    for (let step = 0; step < (seconds * 1_000) / stepMillis; step++) {
      for (let more = prng.below(4); more > 0 && withFaults; more--) server.publish()
      if (withFaults && server.isConnected && chance(150)) prng.pick(faults)()
      server.tick()
      await vi.advanceTimersByTimeAsync(stepMillis)
      mostHeld = Math.max(mostHeld, counts.buffered)
    }
  }
  await run(120, true)
  isBreaking = false
  server.silentUntil = 0
  for (let i = 0; i < 60 && (i === 0 || server.open.length > 0); i++) await run(20, false)
  await Effect.runPromise(Scope.close(scope, Exit.void))
  const closing = intake.close()
  await vi.advanceTimersByTimeAsync(1_000)
  await closing
  return { server, counts, mostHeld }
}

describe("the wire", () => {
  it.each(Array.from({ length: 40 }, (_, i) => i + 1))(
    "loses and settles nothing wrongly, whatever breaks: seed %i",
    async (seed) => {
      const { counts, mostHeld, server } = await simulate(seed)
      assert.deepStrictEqual(server.violations, [])
      assert.deepStrictEqual(server.open, [])
      assert.strictEqual(counts.buffered, 0)
      // What was asked for before a loss may still come beside what was asked for after it.
      assert.isAtMost(mostHeld, 4 * pull)
    },
  )
})
