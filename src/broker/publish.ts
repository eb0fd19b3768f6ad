/**
 * Pipelined publishing: every message has its own token in the reply subject, and the broker's acknowledgements of all of
 * them arrive on one inbox, where they are counted. No promise, timer or subscription for a single message.
 */
import { createInbox, type MsgHdrs, type NatsConnection } from "@nats-io/transport-node"
import { Effect, Semaphore, type Scope } from "effect"
import type { TraceHeaders } from "../observe/traceContext.ts"
import { BrokerUnavailable } from "./Broker.ts"
import type { Reconnects } from "./deliveries.ts"
import { encodeHeaders } from "./headers.ts"

/** A message for a stream, which confirms it. */
export interface Message {
  readonly subject: string
  readonly payload: string | Uint8Array
  readonly headers: MsgHdrs
  /**
   * A second subject, sent first and not confirmed: the server handles what a connection sends in order, so that the
   * confirmation of the message proves that the copy was there before.
   */
  readonly copy: { readonly subject: string; readonly headers: MsgHdrs } | undefined
}

/** One permit is worth a message of up to this many bytes; as many as there are may be unconfirmed. */
const permitBytes = 1024
const permits = 8 * 1024

/** Messages sent at once, so that several callers take turns. */
const sliceMessages = 1024

/** An acknowledgement that takes longer is taken as lost, and the message is sent again. */
const ackTimeoutMillis = 5_000

/** How often a message is sent before its caller hears of it, and the pause before it is sent again, which doubles. */
const attempts = 4
const pauseMillis = 100

/** Messages that wait for their acknowledgements; their tokens are consecutive. */
interface Slice {
  readonly messages: ReadonlyArray<Message>
  readonly firstToken: number
  /** 1 where a message was confirmed. */
  readonly stored: Uint8Array
  /** Messages without an answer. */
  unanswered: number
  failure: string | undefined
  readonly done: () => void
}

/** Stores messages and succeeds when each one was confirmed. One that was sent twice is dropped by its `Nats-Msg-Id`. */
export type PublishAll = (messages: ReadonlyArray<Message>) => Effect.Effect<void, BrokerUnavailable>

const failed = (reason: string) => new BrokerUnavailable({ operation: "publish", cause: new Error(reason) })

/** Buffer.from takes small ones from a pool; the client's TextEncoder allocates each. */
const bytesOf = (payload: string | Uint8Array) => (typeof payload === "string" ? Buffer.from(payload) : payload)

const send = (connection: NatsConnection, message: Message, reply: string): void => {
  const payload = bytesOf(message.payload)
  const { copy } = message
  if (copy !== undefined) connection.publish(copy.subject, payload, { headers: copy.headers })
  connection.publish(message.subject, payload, { headers: message.headers, reply })
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
  reconnects: Reconnects,
): Effect.fn.Return<PublishAll, never, Scope.Scope> {
  const inbox = createInbox()
  const window = Semaphore.makeUnsafe(permits)
  const waiting = new Map<number, Slice>()
  let lastToken = 0

  const subscription = connection.subscribe(`${inbox}.*`, {
    callback: (error, message) => {
      if (error !== null) return
      const token = Number.parseInt(message.subject.slice(inbox.length + 1), 36)
      const slice = waiting.get(token)
      if (slice === undefined) return
      waiting.delete(token)
      const { data } = message
      // `{"stream":…` confirms, `{"error":…` refuses; without a stream there is an empty message with status 503.
      if (data[2] === 0x73) slice.stored[token - slice.firstToken] = 1
      else slice.failure = data.length === 0 ? "no stream takes that subject" : message.string()
      if (--slice.unanswered === 0) slice.done()
    },
  })
  // The client drops what it could not send before a reconnect; no acknowledgement comes for that.
  const reconnected = () => {
    for (const slice of new Set(waiting.values())) slice.done()
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
      const firstToken = lastToken + 1
      lastToken += messages.length
      const finish = () => {
        clearTimeout(timer)
        if (slice.unanswered === 0) return
        for (let token = firstToken; token < firstToken + messages.length; token++) waiting.delete(token)
      }
      const done = () => {
        finish()
        const { failure, stored } = slice
        const rest = failure === undefined && slice.unanswered === 0 ? [] : messages.filter((_, i) => stored[i] === 0)
        resume(Effect.succeed({ rest, reason: failure ?? "not confirmed in time" }))
      }
      const slice: Slice = {
        messages,
        firstToken,
        stored: new Uint8Array(messages.length),
        unanswered: messages.length,
        failure: undefined,
        done,
      }
      const timer = setTimeout(done, ackTimeoutMillis)
      try {
        for (let i = 0; i < messages.length; i++) {
          const token = firstToken + i
          waiting.set(token, slice)
          send(connection, messages[i]!, `${inbox}.${token.toString(36)}`)
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
export const eventHeaders = (messageId: string, trace: TraceHeaders | undefined): MsgHdrs => {
  if (trace === undefined) return encodeHeaders([["Nats-Msg-Id", messageId]])
  const { traceparent, tracestate } = trace
  return encodeHeaders([
    ["Nats-Msg-Id", messageId],
    ["traceparent", traceparent],
    ...(tracestate === undefined ? [] : [["tracestate", tracestate] as const]),
  ])
}
