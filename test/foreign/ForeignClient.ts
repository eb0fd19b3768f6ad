/** A client that knows only the contract: it shares no codec with the program. */
import { headers, type NatsConnection } from "@nats-io/transport-node"
import { Context, Effect, Layer, Queue, type Scope } from "effect"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { connectTo } from "../../bench/servers/connectTo.ts"
import { type Body, type Event, parseEvent } from "./Event.ts"
import { within } from "./within.ts"

/** A foreign client: plain core publishes in, a plain core subscription on `response` out. */
export class ForeignClient extends Context.Service<
  ForeignClient,
  {
    readonly connection: NatsConnection
    readonly publish: (subject: string, body: string | Uint8Array, hdrs?: Record<string, string>) => Effect.Effect<void>
    /** The next event on `response`. */
    readonly next: Effect.Effect<Event>
    readonly append: (body: string, hdrs?: Record<string, string>) => Effect.Effect<Event>
    /** All pages of one read, in the order of arrival. */
    readonly read: (body: string) => Effect.Effect<ReadonlyArray<Event>>
    readonly subscribe: (subject: string) => Effect.Effect<Queue.Dequeue<Event>, never, Scope.Scope>
  }
>()("test/foreign/ForeignClient") {
  static readonly layer = Layer.effect(
    ForeignClient,
    Effect.gen(function* () {
      const { url } = yield* NatsServer
      const connection = yield* Effect.acquireRelease(
        Effect.promise(() => connectTo(url, { maxReconnectAttempts: -1 })),
        (nc) => Effect.promise(() => nc.close()),
      )
      const subscribe = Effect.fnUntraced(function* (subject: string) {
        const queue = yield* Queue.unbounded<Event>()
        const subscription = connection.subscribe(subject, {
          callback: (_, message) => {
            Queue.offerUnsafe(queue, parseEvent(message.subject, message.string()))
          },
        })
        yield* Effect.addFinalizer(() => Effect.sync(() => subscription.unsubscribe()))
        yield* Effect.promise(() => connection.flush())
        return queue
      })
      const events = yield* subscribe("response")
      const publish = (subject: string, body: string | Uint8Array, hdrs: Record<string, string> = {}) =>
        Effect.sync(() => {
          const all = headers()
          for (const [name, value] of Object.entries(hdrs)) all.set(name, value)
          connection.publish(subject, body, Object.keys(hdrs).length > 0 ? { headers: all } : {})
        })
      const next = Queue.take(events)
      return ForeignClient.of({
        connection,
        publish,
        next,
        subscribe,
        append: (body, hdrs) => Effect.andThen(publish("logs", body, hdrs), next),
        read: Effect.fnUntraced(function* (body) {
          yield* publish("query", body)
          const pages: Array<Event> = []
          do pages.push(yield* next)
          while (pages.at(-1)!.body.last === false)
          return pages
        }),
      })
    }),
  )
}

/** The answers to the requests whose id has a prefix, as a core subscription to `response` sees them. */
export interface Answers {
  readonly byRequest: ReadonlyMap<string, ReadonlyArray<Body>>
  /** Waits until so many different requests are answered. */
  readonly until: (count: number, withinMillis: number) => Effect.Effect<void>
}

/** Collects answers from now on. */
export const collectAnswers = Effect.fnUntraced(function* (
  connection: NatsConnection,
  prefix: string,
): Effect.fn.Return<Answers, never, Scope.Scope> {
  const byRequest = new Map<string, Array<Body>>()
  const waiting = new Set<() => void>()
  const subscription = connection.subscribe("response", {
    callback: (_, message) => {
      const { body } = parseEvent("response", message.string())
      if (body.request_id?.startsWith(prefix) !== true) return
      const known = byRequest.get(body.request_id)
      if (known !== undefined) return void known.push(body)
      byRequest.set(body.request_id, [body])
      for (const check of waiting) check()
    },
  })
  yield* Effect.addFinalizer(() => Effect.sync(() => subscription.unsubscribe()))
  yield* Effect.promise(() => connection.flush())
  return {
    byRequest,
    until: (count, withinMillis) =>
      Effect.callback<void>((resume) => {
        const check = () => {
          if (byRequest.size < count) return
          waiting.delete(check)
          resume(Effect.void)
        }
        waiting.add(check)
        check()
        return Effect.sync(() => waiting.delete(check))
      }).pipe(within(`${count} answers to ${prefix}`, withinMillis, () => `got ${byRequest.size}`)),
  }
})

/** An append with the text as its request id, below the prefix. */
export const appendBody = (id: number, prefix: string, log: string): string =>
  JSON.stringify({ id, log, request_id: `${prefix}${log}` })

/** Publishes core messages in sequence. */
export const publishInSequence = (connection: NatsConnection, bodies: Iterable<string>): Effect.Effect<void> =>
  Effect.promise(async () => {
    let unflushed = 0
    for (const body of bodies) {
      connection.publish("logs", body)
      if (++unflushed % 500 === 0) await connection.flush()
    }
    await connection.flush()
  })
