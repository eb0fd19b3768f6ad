/** The client of a measurement: publishes appends and reads, and times the events. Kept cheap, as it shares the machine. */
import type { Msg, NatsConnection } from "@nats-io/transport-node"
import { Deferred, Effect } from "effect"

/** Publishes as fast as the broker takes it. */
export const publishAll = (connection: NatsConnection, count: number, body: (i: number) => string) =>
  Effect.promise(async () => {
    for (let i = 0; i < count; i++) {
      connection.publish("logs", body(i))
      if (i % 2_000 === 1_999) await connection.flush()
    }
    await connection.flush()
  })

/** Subscribes; the effect inside completes with the time of the last of `count` events, as `performance.now()`. */
export const events = Effect.fnUntraced(function* (
  connection: NatsConnection,
  count: number,
  each?: (event: Msg) => void,
) {
  const done = yield* Deferred.make<number>()
  let seen = 0
  const subscription = connection.subscribe("response", {
    callback: (_, event) => {
      each?.(event)
      if (++seen < count) return
      subscription.unsubscribe()
      Deferred.doneUnsafe(done, Effect.succeed(performance.now()))
    },
  })
  yield* Effect.promise(() => connection.flush())
  return Deferred.await(done)
})

/** The number that is the `request_id` of an event, which stands at its end. */
const requestNumber = ({ data }: Msg): number => {
  let value = 0
  let place = 1
  for (let at = data.length - 3; at >= 0 && data[at] !== 0x22; at--) {
    value += (data[at]! - 0x30) * place
    place *= 10
  }
  return value
}

export interface Delays {
  readonly p50: number
  readonly p99: number
  readonly p999: number
}

export const quantiles = (delays: Float64Array): Delays => {
  const sorted = delays.slice().sort()
  const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN
  return { p50: at(0.5), p99: at(0.99), p999: at(0.999) }
}

/**
 * Publishes at a fixed rate and gives the delays from append to event, in milliseconds. Each is counted from the moment at
 * which its append was due: a system that holds up the publisher does not look faster for it.
 */
export const openLoop = Effect.fnUntraced(function* (
  connection: NatsConnection,
  options: { readonly rate: number; readonly seconds: number; readonly body: (i: number) => string },
) {
  const total = Math.round(options.rate * options.seconds)
  const delays = new Float64Array(total)
  let started = 0
  const due = (i: number) => started + (i / options.rate) * 1_000
  const answered = yield* events(connection, total, (event) => {
    const i = requestNumber(event)
    delays[i] = performance.now() - due(i)
  })
  yield* Effect.callback<void>((resume) => {
    started = performance.now()
    let next = 0
    const timer = setInterval(() => {
      const now = performance.now()
      while (next < total && due(next) <= now) connection.publish("logs", options.body(next++))
      if (next < total) return
      clearInterval(timer)
      resume(Effect.void)
    }, 1)
    return Effect.sync(() => clearInterval(timer))
  })
  const ended = yield* answered
  return { ...quantiles(delays), rate: (total / (ended - started)) * 1_000 }
})

export interface ReadResult {
  readonly entries: number
  readonly pages: number
  readonly millis: number
}

/** Reads through the service until the last page. */
export const readPages = (connection: NatsConnection, request: string): Effect.Effect<ReadResult> =>
  Effect.callback((resume) => {
    const inbox = `_INBOX.bench.${Math.random().toString(36).slice(2)}`
    const started = performance.now()
    let entries = 0
    let pages = 0
    const subscription = connection.subscribe(inbox, {
      callback: (_, message) => {
        const page = JSON.parse(message.string()) as { entries: ReadonlyArray<unknown>; last: boolean }
        entries += page.entries.length
        pages++
        if (!page.last) return
        subscription.unsubscribe()
        resume(Effect.succeed({ entries, pages, millis: performance.now() - started }))
      },
    })
    connection.publish("query", `${request.slice(0, -1)},"reply_to":"${inbox}"}`)
    return Effect.sync(() => subscription.unsubscribe())
  })
