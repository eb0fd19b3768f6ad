/**
 * Pipelined publishing: every message has its own token in the reply subject, and the broker's acknowledgements of all of
 * them arrive on one inbox, where they are counted. No promise, timer or subscription for a single message.
 */
import { createInbox, type NatsConnection } from "@nats-io/transport-node"
import { Effect, Semaphore, type Scope } from "effect"
import type { TraceHeaders } from "../observe/traceContext.ts"
import { BrokerUnavailable } from "./Broker.ts"
import type { Reconnects } from "./deliveries.ts"
import { blockText } from "./headers.ts"
import type { Outgoing } from "./Outgoing.ts"

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

/** Messages sent at once, so that several callers take turns; each slice has as many tokens. */
const sliceMessages = 1024

/** An acknowledgement that takes longer is taken as lost, and the message is sent again. */
const ackTimeoutMillis = 5_000

/** How often a message is sent before its caller hears of it, and the pause before it is sent again, which doubles. */
const attempts = 4
const pauseMillis = 100

/** Messages that wait for their acknowledgements. The token of the i-th of slice n is n * `sliceMessages` + i. */
interface Slice {
  /** 1 where an answer came, and where it confirmed the message. */
  readonly answered: Uint8Array
  readonly stored: Uint8Array
  /** Messages without an answer. */
  unanswered: number
  failure: string | undefined
  readonly done: () => void
}

/** Stores messages and succeeds when each one was confirmed. One that was sent twice is dropped by its `Nats-Msg-Id`. */
export type PublishAll = (messages: ReadonlyArray<Message>) => Effect.Effect<void, BrokerUnavailable>

const failed = (reason: string) => new BrokerUnavailable({ operation: "publish", cause: new Error(reason) })

const send = (outgoing: Outgoing, { copy, headers, payload, subject }: Message, reply: string): void => {
  if (copy !== undefined) outgoing.publish(copy.subject, undefined, copy.headers, payload)
  outgoing.publish(subject, reply, headers, payload)
}

/** How many messages from `start` on are sent at once, and their permits. */
const nextSlice = (
  messages: ReadonlyArray<Message>,
  start: number,
): { readonly end: number; readonly cost: number } => {
  let end = start
  let cost = 0
  while (end < messages.length && end - start < sliceMessages) {
    const { copy, payload } = messages[end]!
    const next = Math.ceil((payload.length + 256) / permitBytes) * (copy === undefined ? 1 : 2)
    if (end > start && cost + next > permits / 2) break
    cost += next
    end++
  }
  return { end, cost: Math.min(cost, permits) }
}

export const makePublisher = Effect.fnUntraced(function* (
  connection: NatsConnection,
  outgoing: Outgoing,
  reconnects: Reconnects,
): Effect.fn.Return<PublishAll, never, Scope.Scope> {
  const inbox = createInbox()
  const window = Semaphore.makeUnsafe(permits)
  const waiting = new Map<number, Slice>()
  let lastSlice = 0

  const subscription = connection.subscribe(`${inbox}.*`, {
    callback: (error, message) => {
      if (error !== null) return
      const token = Number.parseInt(message.subject.slice(inbox.length + 1), 36)
      const slice = waiting.get(Math.floor(token / sliceMessages))
      const index = token % sliceMessages
      if (slice === undefined || slice.answered[index] === 1) return
      slice.answered[index] = 1
      const { data } = message
      // `{"stream":…` confirms, `{"error":…` refuses; without a stream there is an empty message with status 503.
      if (data[2] === 0x73) slice.stored[index] = 1
      else slice.failure = data.length === 0 ? "no stream takes that subject" : message.string()
      if (--slice.unanswered === 0) slice.done()
    },
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
    }),
  )

  /** Sends once and waits for the acknowledgements; gives the messages that were not confirmed, and why. */
  const sendOnce = (
    messages: ReadonlyArray<Message>,
  ): Effect.Effect<{ readonly rest: ReadonlyArray<Message>; readonly reason: string }, BrokerUnavailable> =>
    Effect.callback((resume) => {
      const number = ++lastSlice
      const finish = () => {
        clearTimeout(timer)
        waiting.delete(number)
      }
      const done = () => {
        finish()
        const { failure, stored } = slice
        const rest = failure === undefined && slice.unanswered === 0 ? [] : messages.filter((_, i) => stored[i] === 0)
        resume(Effect.succeed({ rest, reason: failure ?? "not confirmed in time" }))
      }
      const slice: Slice = {
        answered: new Uint8Array(messages.length),
        stored: new Uint8Array(messages.length),
        unanswered: messages.length,
        failure: undefined,
        done,
      }
      const timer = setTimeout(done, ackTimeoutMillis)
      waiting.set(number, slice)
      try {
        for (let i = 0; i < messages.length; i++) {
          send(outgoing, messages[i]!, `${inbox}.${(number * sliceMessages + i).toString(36)}`)
        }
      } catch (cause) {
        finish()
        return resume(Effect.fail(new BrokerUnavailable({ operation: "publish", cause })))
      }
      return Effect.sync(finish)
    })

  const sendSlice = Effect.fnUntraced(function* (messages: ReadonlyArray<Message>) {
    let rest = messages
    for (let i = 1; ; i++) {
      const sent = yield* sendOnce(rest)
      rest = sent.rest
      if (rest.length === 0) return
      if (i === attempts) return yield* failed(`${rest.length} of ${messages.length}: ${sent.reason}`)
      yield* Effect.sleep(pauseMillis * 2 ** (i - 1))
    }
  })

  return Effect.fnUntraced(function* (messages: ReadonlyArray<Message>) {
    for (let start = 0; start < messages.length;) {
      const { end, cost } = nextSlice(messages, start)
      const slice = start === 0 && end === messages.length ? messages : messages.slice(start, end)
      yield* window.withPermits(cost)(sendSlice(slice))
      start = end
    }
  })
})

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
