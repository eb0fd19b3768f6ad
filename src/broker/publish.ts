/**
 * Pipelined publishing: messages are sent in slices, each with a reply subject of its own, on which the broker's
 * acknowledgements are counted. No promise, timer, subscription or token for a single message: one that is missing has its
 * whole slice sent again, which the broker's deduplication makes harmless.
 */
import { createInbox, type NatsConnection } from "@nats-io/transport-node"
import { Effect, Semaphore, type Scope } from "effect"
import type { TraceHeaders } from "../observe/traceContext.ts"
import { BrokerUnavailable } from "./Broker.ts"
import type { Reconnects } from "./deliveries.ts"
import { blockText } from "./headers.ts"
import type { Incoming } from "./Incoming.ts"
import type { Outgoing } from "./Outgoing.ts"
import { fullStoreIn } from "./refusals.ts"

/** A message for a stream, which confirms it. */
export interface Message {
  readonly subject: string
  readonly payload: string | Uint8Array
  /** As `blockText` makes them. */
  readonly headers: string
  /**
   * A second subject, sent first and not confirmed: the server handles what a connection sends in order, so that the
   * confirmation of the message proves that the copy was there before.
   */
  readonly copy: { readonly subject: string; readonly headers: string } | undefined
}

/** One permit is worth a message of up to this many bytes; as many as there are may be unconfirmed. */
const permitBytes = 1024
const permits = 8 * 1024

/** Messages sent at once, so that several callers take turns. */
const sliceMessages = 1024

/** Acknowledgements that take longer are taken as lost, and the slice is sent again. */
const ackTimeoutMillis = 5_000

/** How often a slice is sent before its caller hears of it, and the pause before it is sent again, which doubles. */
const attempts = 4
const pauseMillis = 100

/** Messages that wait for their acknowledgements. */
interface Slice {
  unanswered: number
  /** The stream that answers first; another one, of a domain beside ours, may take the same subject. */
  stream: string | undefined
  /** Answers so far. In a cluster a new leader may confirm once more what the one before has confirmed. */
  readonly confirmed: Set<string>
  /** What the broker said of a message that it did not store. */
  failure: string | undefined
  readonly done: () => void
}

/**
 * Stores messages and succeeds when each one was confirmed. One that was sent twice is dropped by its `Nats-Msg-Id`.
 *
 * A message is made when it is sent, and made again when it is sent again: thousands wait for their confirmation, and the
 * garbage collector would move each of them. `size` is about how many bytes it has, with its copy.
 */
export type PublishAll = <A>(
  all: ReadonlyArray<A>,
  toMessage: (item: A) => Message,
  size: (item: A) => number,
) => Effect.Effect<void, BrokerUnavailable>

const failed = (reason: string) => new BrokerUnavailable({ operation: "publish", cause: new Error(reason) })

const send = (outgoing: Outgoing, { copy, headers, payload, subject }: Message, reply: string): void => {
  if (copy !== undefined) outgoing.publish(copy.subject, undefined, copy.headers, payload)
  outgoing.publish(subject, reply, headers, payload)
}

/** Whether a confirmation is one of a message that had none: `{"stream":"…", "seq":7}`, perhaps with `,"duplicate": true`. */
const isNews = (slice: Slice, answer: string): boolean => {
  const stream = answer.slice(0, answer.indexOf('"seq"'))
  if (stream !== (slice.stream ??= stream)) return false
  // Two messages with one id are confirmed as one, the second as a duplicate.
  if (answer.includes('"duplicate"')) return true
  const before = slice.confirmed.size
  return slice.confirmed.add(answer).size > before
}

/** Where the slice ends that begins at `start`, and its permits. */
const nextSlice = <A>(
  all: ReadonlyArray<A>,
  start: number,
  size: (item: A) => number,
): { readonly end: number; readonly cost: number } => {
  let end = start
  let cost = 0
  while (end < all.length && end - start < sliceMessages) {
    const next = Math.ceil((size(all[end]!) + 256) / permitBytes)
    if (end > start && cost + next > permits / 2) break
    cost += next
    end++
  }
  return { end, cost: Math.min(cost, permits) }
}

export const makePublisher = Effect.fnUntraced(function* (
  connection: NatsConnection,
  outgoing: Outgoing,
  incoming: Incoming,
  reconnects: Reconnects,
): Effect.fn.Return<PublishAll, never, Scope.Scope> {
  const inbox = createInbox()
  const window = Semaphore.makeUnsafe(permits)
  /** By reply subject. */
  const waiting = new Map<string, Slice>()
  let lastSlice = 0

  const subscription = connection.subscribe(`${inbox}.*`, { callback: () => undefined })
  incoming.listen(subscription, (subject, _, __, payload) => {
    const slice = waiting.get(subject)
    if (slice === undefined) return
    const answer = String(payload)
    // `{"error":…` refuses; without a stream there is an empty message with status 503.
    if (!answer.startsWith('{"stream":')) slice.failure = answer || "no stream takes that subject"
    else if (!isNews(slice, answer)) return
    if (--slice.unanswered === 0) slice.done()
  })
  // The client drops what it could not send before a reconnect; no acknowledgement comes for that.
  const reconnected = () => {
    for (const slice of waiting.values()) slice.done()
  }
  reconnects.listeners.add(reconnected)
  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      reconnects.listeners.delete(reconnected)
      subscription.unsubscribe()
      incoming.forget(subscription)
    }),
  )

  /** Sends once and waits for the acknowledgements; gives the reason where not all were confirmed. */
  const sendOnce = <A>(
    all: ReadonlyArray<A>,
    toMessage: (item: A) => Message,
  ): Effect.Effect<string | undefined, BrokerUnavailable> =>
    Effect.callback((resume) => {
      // A new one for each attempt: an acknowledgement that comes late does not count for the next.
      const reply = `${inbox}.${(++lastSlice).toString(36)}`
      const finish = () => {
        clearTimeout(timer)
        waiting.delete(reply)
      }
      const slice: Slice = {
        unanswered: all.length,
        stream: undefined,
        confirmed: new Set(),
        failure: undefined,
        done: () => {
          finish()
          resume(Effect.succeed(slice.failure ?? (slice.unanswered === 0 ? undefined : "not confirmed in time")))
        },
      }
      const timer = setTimeout(slice.done, ackTimeoutMillis)
      waiting.set(reply, slice)
      try {
        for (const item of all) send(outgoing, toMessage(item), reply)
      } catch (cause) {
        finish()
        return resume(Effect.fail(new BrokerUnavailable({ operation: "publish", cause })))
      }
      return Effect.sync(finish)
    })

  const sendSlice = Effect.fnUntraced(function* <A>(slice: ReadonlyArray<A>, toMessage: (item: A) => Message) {
    for (let i = 1; ; i++) {
      const failure = yield* sendOnce(slice, toMessage)
      if (failure === undefined) return
      // Waiting makes no room.
      const full = fullStoreIn(failure)
      if (full !== undefined) return yield* new BrokerUnavailable({ operation: "publish", cause: full })
      if (i === attempts) return yield* failed(`${slice.length} messages: ${failure}`)
      yield* Effect.sleep(pauseMillis * 2 ** (i - 1))
    }
  })

  return Effect.fnUntraced(function* <A>(
    all: ReadonlyArray<A>,
    toMessage: (item: A) => Message,
    size: (item: A) => number,
  ) {
    for (let start = 0; start < all.length;) {
      const { end, cost } = nextSlice(all, start, size)
      const slice = start === 0 && end === all.length ? all : all.slice(start, end)
      yield* window.withPermits(cost)(sendSlice(slice, toMessage))
      start = end
    }
  })
})

/** Publishes messages that are made already. */
export const publishMade = (publish: PublishAll, messages: ReadonlyArray<Message>) =>
  publish(
    messages,
    (message) => message,
    ({ payload }) => payload.length,
  )

/** Headers of an event: a message id for the broker's deduplication, and the trace where there is one. */
export const eventHeaders = (messageId: string, trace: TraceHeaders | undefined): string => {
  if (trace === undefined) return `NATS/1.0\r\nNats-Msg-Id: ${messageId}\r\n\r\n`
  const { traceparent, tracestate } = trace
  return blockText([
    ["Nats-Msg-Id", messageId],
    ["traceparent", traceparent],
    ...(tracestate === undefined ? [] : [["tracestate", tracestate] as const]),
  ])
}
