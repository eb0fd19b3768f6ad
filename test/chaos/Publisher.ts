/**
 * A publisher that records what the broker has confirmed.
 *
 * Objects take turns. Of one object a window of a few appends is sent in sequence, and the next window when all of them
 * are settled, so that the order in which the broker must have stored them is known. Half of the appends carry a
 * `Nats-Msg-Id` and are repeated until they are confirmed; the others are sent once, and one without a confirmation is
 * unknown for ever.
 */
import { jetstream } from "@nats-io/jetstream"
import { headers } from "@nats-io/transport-node"
import { Effect, Latch, type Scope } from "effect"
import { setTimeout as pause } from "node:timers/promises"
import type { Append, Ledger, ObjectRecord } from "./Ledger.ts"
import { textOf } from "./Ledger.ts"
import { Randomness } from "./Randomness.ts"
import { connectTo } from "../../bench/servers/connectTo.ts"

export interface PublisherOptions {
  readonly servers: string
  readonly seed: number
  /** Appends a second, while the broker answers. */
  readonly rate: number
  /** Share of the appends that goes to object 0. */
  readonly hotShare: number
  /** Share of requests that are not valid. */
  readonly badShare: number
  /** Most appends of an object that are sent side by side; of object 0, sixteen times as many. */
  readonly window: number
}

export interface Publisher {
  /** Sends no more, and returns when each append that was sent is confirmed, or unknown. */
  readonly finish: Effect.Effect<void>
}

/** How long the broker may take to confirm. */
const confirmMillis = 2_000
const pauseMillis = 100
const tickMillis = 10

/** The request of an append, as it is sent. */
export const bodyOf = (append: Append): string => {
  const { object, n } = append
  const log = append.bad ? "7" : JSON.stringify(textOf(object.index, n))
  return `{"id":${object.id},"log":${log},"request_id":"${object.index}.${n}"}`
}

export const startPublisher = Effect.fnUntraced(function* (
  ledger: Ledger,
  options: PublisherOptions,
): Effect.fn.Return<Publisher, never, Scope.Scope> {
  const random = new Randomness(options.seed ^ 0x5eed)
  const connection = yield* Effect.acquireRelease(
    Effect.promise(() => connectTo(options.servers, { maxReconnectAttempts: -1, reconnectTimeWait: 100 })),
    (open) => Effect.promise(() => open.close()),
  )
  const js = jetstream(connection)
  const busy = new Set<ObjectRecord>()
  const settled = Latch.makeUnsafe(true)
  let finishing = false
  let windows = 0

  const send = async (append: Append): Promise<void> => {
    const { object, n } = append
    const all = headers()
    if (append.named) all.set("Nats-Msg-Id", `${object.index}.${n}`)
    for (;;) {
      append.attempts++
      try {
        const confirmation = await js.publish("logs", bodyOf(append), { headers: all, timeout: confirmMillis })
        return ledger.confirm(append, confirmation.seq)
      } catch {
        if (!append.named || connection.isClosed()) return ledger.giveUp()
        await pause(pauseMillis)
      }
    }
  }

  const sendWindow = async (object: ObjectRecord, count: number): Promise<void> => {
    busy.add(object)
    settled.closeUnsafe()
    const window = ++windows
    const appends = Array.from({ length: count }, (): Append => {
      const append: Append = {
        object,
        n: object.appends.length,
        named: random.chance(0.5),
        bad: random.chance(options.badShare),
        window,
        sentAt: Date.now(),
        attempts: 0,
        confirmedAt: undefined,
        confirmedSeq: undefined,
        answeredAt: undefined,
        copies: [],
        parked: [],
        answers: [],
        errors: 0,
      }
      object.appends.push(append)
      return append
    })
    await Promise.all(appends.map(send))
    busy.delete(object)
    if (busy.size === 0) settled.openUnsafe()
  }

  let lastTick = Date.now()
  let allowed = 0
  const tick = Effect.sync(() => {
    const now = Date.now()
    // After an outage at most a second's worth is made up for.
    allowed = Math.min(allowed + ((now - lastTick) * options.rate) / 1_000, options.rate)
    lastTick = now
    for (let misses = 0; allowed >= 1 && misses < 20 && !finishing;) {
      const isHot = random.chance(options.hotShare)
      const object = isHot ? ledger.objects[0]! : random.pick(ledger.objects)
      if (busy.has(object)) {
        misses++
        continue
      }
      const count = random.between(1, Math.min(options.window * (isHot ? 16 : 1), Math.ceil(allowed)))
      allowed -= count
      void sendWindow(object, count)
    }
  })
  yield* tick.pipe(Effect.andThen(Effect.sleep(tickMillis)), Effect.forever, Effect.forkScoped)
  return {
    finish: Effect.suspend(() => {
      finishing = true
      return settled.await
    }),
  }
})
